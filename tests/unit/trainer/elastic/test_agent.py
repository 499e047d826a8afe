"""A node's agent meets the others again, and does not wait for who will never answer."""

import signal
import socket
import subprocess
import sys

import pytest
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousConnectionError

from tests.conftest import free_port
from tests.integration.torchruns import ROOT
from trainer.elastic.agent import SILENT_SECONDS, bound_silence, find_store, meet


def there() -> None:
    """The store answers."""


def test_an_agent_that_never_finds_the_others_ends_and_its_own_failure_ends_it_at_once() -> None:
    tries = 0

    def lose() -> None:
        nonlocal tries
        tries += 1
        raise RendezvousConnectionError("no store")

    with pytest.raises(RendezvousConnectionError):
        meet(there, lose, patience=0.2, pause=0.05)
    assert 3 <= tries <= 6

    def fail() -> None:
        nonlocal tries
        tries += 1
        raise RendezvousClosedError("the run is over")

    tries = 0
    with pytest.raises(RendezvousClosedError):
        meet(there, fail)
    assert tries == 1


def test_losses_of_an_agent_that_had_found_the_others_do_not_add_up() -> None:
    tries = 0

    def settle_and_lose() -> None:
        nonlocal tries
        tries += 1
        if tries < 9:
            raise RendezvousConnectionError("the store is gone")

    meet(there, settle_and_lose, patience=0.0, settled=0.0, pause=0.01)
    assert tries == 9


def test_an_agent_whose_store_never_comes_back_ends_however_long_it_has_looked() -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    looked = 0

    def look() -> None:
        nonlocal looked
        looked += 1
        find_store(endpoint, patience=0.0)

    with pytest.raises(RendezvousConnectionError, match=endpoint):
        meet(look, lambda: None, patience=60.0, settled=0.0, pause=0.0)
    assert looked == 1


def test_a_store_that_is_stopped_has_not_done_its_work() -> None:
    # A Job whose pod ends well is complete: the nodes would wait for another one for ever.
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", "trainer.elastic.rendezvous", str(port)], cwd=ROOT) as store:
        find_store(f"127.0.0.1:{port}", patience=60.0)
        store.terminate()
        assert store.wait(30) == 128 + signal.SIGTERM


def test_the_kernel_gives_up_a_connection_to_a_node_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as asking:
        assert asking.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
        bound_silence()
        assert asking.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == SILENT_SECONDS * 1000
        assert asking.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
