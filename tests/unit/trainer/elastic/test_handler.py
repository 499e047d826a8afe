"""When the nodes of a run form their group anew, in torchrun's own rendezvous."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed.elastic.rendezvous import RendezvousParameters, rendezvous_handler_registry
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

from tests.conftest import free_port
from trainer.elastic import handler


def test_who_comes_right_after_a_group_has_formed_waits_until_it_has_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    endpoint = f"127.0.0.1:{free_port()}"

    def node(*, is_host: bool) -> handler.Rendezvous:
        made = rendezvous_handler_registry.create_handler(RendezvousParameters(
            handler.BACKEND, endpoint, "run", 1, 2, "127.0.0.1", is_host=is_host, last_call_timeout=8
        ))  # fmt: skip
        assert isinstance(made, handler.Rendezvous)
        return made

    first = node(is_host=True)
    assert first.next_rendezvous().world_size == 1
    with ThreadPoolExecutor() as pool:
        joining = pool.submit(node(is_host=False).next_rendezvous)
        deadline = time.monotonic() + 200
        while DynamicRendezvousHandler.num_nodes_waiting(first) == 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert first.num_nodes_waiting() == 0
        first.settling = 0
        assert first.num_nodes_waiting() == 1
        # On a busy machine the group may form once more without the one that waits.
        while first.next_rendezvous().world_size != 2:
            assert time.monotonic() < deadline
        assert joining.result(30).world_size == 2
