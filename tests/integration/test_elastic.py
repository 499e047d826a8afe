"""Nodes that join, leave, go silent or lose their rendezvous while they train, in real processes."""

import contextlib
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import free_port
from tests.integration.torchruns import (
    TORCHRUN,
    newest_copy,
    rendezvous,
    small,
    torchrun,
    wait_until,
    workers_of,
    world_sizes,
)
from trainer.store.objects import DirectoryStore
from trainer.store.rundir import list_checkpoints, read_sessions


def test_a_node_may_join_and_leave_and_training_goes_on_from_what_a_survivor_has_in_memory(
    tiny_faces: Path, tmp_path: Path
) -> None:
    schedule = {"unit": "steps", "length": 100_000, "warmup": 4}
    run = small(tiny_faces, schedule=schedule, cadence={"checkpoint_steps": 100_000})
    folder = tmp_path / "elastic"
    # As on one machine: torchrun's own agents, the first of which holds the store.
    node = {"workers": 1, "nodes": "1:2", "endpoint": f"127.0.0.1:{free_port()}", "hosts": True, "module": TORCHRUN}
    with torchrun(run, folder, **node, MCF_POOL="stays") as first:
        wait_until(lambda: newest_copy(folder, run) > 0, first, folder / "log")
        with torchrun(run, folder, **node, MCF_POOL="spot") as second:
            wait_until(lambda: world_sizes(folder) == [1, 2], first, folder / "log")
            joined_at = read_sessions(DirectoryStore(str(folder)))[-1].first_step
            wait_until(lambda: newest_copy(folder, run) > joined_at, first, folder / "log")
            second.kill()
        wait_until(lambda: world_sizes(folder) == [1, 2, 1], first, folder / "log")
        saved = [checkpoint.step for checkpoint in list_checkpoints(DirectoryStore(str(folder)))]
    sessions = read_sessions(DirectoryStore(str(folder)))
    assert [session.pools for session in sessions] == [{"stays": 1}, {"stays": 1, "spot": 1}, {"stays": 1}]
    firsts = [session.first_step for session in sessions]
    assert 0 < firsts[1] < firsts[2]
    assert max(saved) < firsts[2], "it went on from what the survivor had in memory"


def test_a_node_that_is_told_to_go_and_cannot_save_takes_nothing_with_it(tiny_faces: Path, tmp_path: Path) -> None:
    schedule = {"unit": "steps", "length": 100_000, "warmup": 4}
    run = small(tiny_faces, schedule=schedule, cadence={"checkpoint_steps": 100_000})
    folder, port = tmp_path / "reclaimed", free_port()
    node = {"workers": 1, "nodes": "1:2", "endpoint": f"127.0.0.1:{port}"}
    with rendezvous(port), torchrun(run, folder, **node) as one:
        wait_until(lambda: newest_copy(folder, run) > 0, one, folder / "log")
        with torchrun(run, folder, **node) as other:
            wait_until(lambda: world_sizes(folder) == [1, 2], one, folder / "log")
            joined_at = read_sessions(DirectoryStore(str(folder)))[-1].first_step
            wait_until(lambda: newest_copy(folder, run) > joined_at, one, folder / "log")
            # Nodes of one machine are numbered by their process ids.
            reclaimed, left = sorted((one, other), key=lambda node: node.pid)
            # The store refuses every checkpoint: its folder is none.
            (folder / "checkpoints").rename(folder / "kept")
            (folder / "checkpoints").write_text("")
            reclaimed.send_signal(signal.SIGTERM)
            wait_until(lambda: "is not saved yet" in (folder / "log").read_text(), left, folder / "log")
            reclaimed.kill()
            (folder / "checkpoints").unlink()
            (folder / "kept").rename(folder / "checkpoints")
            wait_until(lambda: world_sizes(folder) == [1, 2, 1], left, folder / "log")
    firsts = [session.first_step for session in read_sessions(DirectoryStore(str(folder)))]
    assert joined_at < firsts[2], "it went on from what the other node had in memory"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_node_that_silently_goes_is_noticed_and_training_goes_on_without_it(
    tiny_faces: Path, tmp_path: Path, rank: str
) -> None:
    # Frozen, it keeps its connections: to the others it looks like one that computes for ever. The first one also holds
    # the store of the group, which then answers nobody.
    schedule = {"unit": "steps", "length": 100_000, "warmup": 4}
    run = small(tiny_faces, schedule=schedule, cadence={"checkpoint_steps": 100_000})
    folder, patience = tmp_path / "silent", {"MCF_LOST_NODE_SECONDS": "6", "MCF_COLLECTIVE_TIMEOUT_SECONDS": "300"}
    port = free_port()
    node = {"workers": 1, "nodes": "1:2", "endpoint": f"127.0.0.1:{port}", **patience}
    with rendezvous(port), torchrun(run, folder, **node) as one:
        wait_until(lambda: newest_copy(folder, run) > 0, one, folder / "log")
        with torchrun(run, folder, **node) as other:
            wait_until(lambda: world_sizes(folder) == [1, 2], one, folder / "log")
            # Nodes of one machine are numbered by their process ids.
            lost, left = sorted((one, other), key=lambda node: (node.pid > min(one.pid, other.pid)) != int(rank))
            for process in [*psutil.Process(lost.pid).children(recursive=True), psutil.Process(lost.pid)]:
                process.suspend()
            frozen = time.monotonic()
            wait_until(lambda: world_sizes(folder) == [1, 2, 1], left, folder / "log")
            assert time.monotonic() - frozen < 60  # alone, the collective would wait for 300 s
            assert f"node {rank} has not been heard of for" in (folder / "log").read_text()


def test_nodes_that_lose_their_rendezvous_meet_again_at_the_next_one(tiny_faces: Path, tmp_path: Path) -> None:
    schedule = {"unit": "steps", "length": 100_000, "warmup": 4}
    run = small(tiny_faces, schedule=schedule, cadence={"checkpoint_steps": 100_000})
    folder, port = tmp_path / "met-again", free_port()
    node = {"workers": 1, "nodes": "2:2", "endpoint": f"127.0.0.1:{port}"}
    with contextlib.ExitStack() as nodes:
        with rendezvous(port):
            one, other = (nodes.enter_context(torchrun(run, folder, **node)) for _ in range(2))
            wait_until(lambda: newest_copy(folder, run) > 0, one, folder / "log")
        # Nobody trains with its help: they go on until there is another one, however long that takes.
        wait_until(lambda: "the rendezvous is lost" in (folder / "log").read_text(), one, folder / "log")
        alone = newest_copy(folder, run)
        wait_until(lambda: newest_copy(folder, run) > alone, one, folder / "log")
        assert world_sizes(folder) == [2]
        # Both stay: a container that ends waits longer and longer before it starts again.
        with rendezvous(port):
            wait_until(lambda: world_sizes(folder) == [2, 2], one, folder / "log")
            reached = newest_copy(folder, run)
            wait_until(lambda: newest_copy(folder, run) > reached, one, folder / "log")
            assert other.poll() is None
    firsts = [session.first_step for session in read_sessions(DirectoryStore(str(folder)))]
    assert firsts[1] > 0


def test_a_node_that_silently_goes_while_workers_start_is_noticed_too(tiny_faces: Path, tmp_path: Path) -> None:
    # The workers have no word from each other yet: on a cluster the agents notice.
    schedule = {"unit": "steps", "length": 100_000, "warmup": 4}
    run = small(tiny_faces, schedule=schedule, cadence={"checkpoint_steps": 100_000})
    folder, port = tmp_path / "early", free_port()
    node = {
        "workers": 1, "nodes": "1:2", "endpoint": f"127.0.0.1:{port}",
        "MCF_COLLECTIVE_TIMEOUT_SECONDS": "300",
    }  # fmt: skip
    with rendezvous(port), torchrun(run, folder, **node) as one:
        wait_until(lambda: newest_copy(folder, run) > 0, one, folder / "log")
        with torchrun(run, folder, **node) as other:
            lost = psutil.Process(other.pid)
            wait_until(lambda: bool(workers_of(other)), other, folder / "log")
            for process in [lost, *lost.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):  # libraries start others for a moment while they load
                    process.suspend()
            wait_until(lambda: world_sizes(folder) == [1, 1], one, folder / "log")
            # Torch waits for the one that has gone where no handler runs, and an agent for its worker for 30 s.
            assert "Unable to shutdown" not in (folder / "log").read_text()
            reached = newest_copy(folder, run)
            wait_until(lambda: newest_copy(folder, run) > reached, one, folder / "log")


def test_an_agents_workers_are_forked_from_a_process_that_has_loaded_what_they_need(
    tiny_faces: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "forked"
    with torchrun(small(tiny_faces), folder) as agent:
        wait_until(lambda: len(workers_of(agent)) == 2, agent, folder / "log")
        [loaded] = {worker.parent() for worker in workers_of(agent)}
        assert loaded
        assert loaded.pid != agent.pid
        # What trainer.main imports, and not torch alone.
        assert any("pydantic_core" in each.path for each in loaded.memory_maps())
        # A fork has no thread but one: what the others hold would never be let go.
        assert loaded.num_threads() == 1
        assert agent.wait(120) == 0, (folder / "log").read_text()[-3000:]


def test_workers_end_with_their_agent_however_it_ends(tiny_faces: Path, tmp_path: Path) -> None:
    schedule = {"unit": "steps", "length": 100_000, "warmup": 4}
    run = small(tiny_faces, schedule=schedule, cadence={"checkpoint_steps": 100_000})
    with torchrun(run, tmp_path / "orphans") as agent:
        wait_until(lambda: newest_copy(tmp_path / "orphans", run) > 0, agent, tmp_path / "orphans/log")
        below = psutil.Process(agent.pid).children(recursive=True)
        agent.kill()
        assert psutil.wait_procs(below, timeout=30)[1] == []
