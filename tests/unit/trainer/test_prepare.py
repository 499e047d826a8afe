"""Before the first step the size of a pass is found, and the run is left as it was."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from tests.unit.trainer.method.test_passes import GRID, SMALL
from trainer import passes, teachers
from trainer.contract import Batch, RunSpec
from trainer.contract.records import OUT_OF_MEMORY, MemoryNote
from trainer.data.manifest import DataError
from trainer.elastic.distributed import World, joined_world
from trainer.loop import Parts, synchronised
from trainer.main import noted_before
from trainer.method.grid import step_plan, teams
from trainer.method.optim import adamw
from trainer.passes import largest_that_fits, prepare
from trainer.store.objects import DirectoryStore
from trainer.store.rundir import read_memory_note
from trainer.weights.initial import start

RUN = RunSpec.model_validate({**SMALL, **GRID})


@contextmanager
def prepared_parts() -> Iterator[tuple[World, Parts]]:
    with joined_world() as world:
        model, target = start(RUN)
        world.form_teams(teams(RUN.batch, 1))
        yield world, Parts(model, target, teachers.build(RUN, world.device), adamw(model, RUN), 32)


def test_a_pass_that_does_not_fit_is_halved() -> None:
    tried = []

    def attempt(cells: int) -> None:
        tried.append(cells)
        if cells > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert largest_that_fits(22, attempt) == 5
    assert tried == [22, 11, 5]
    assert largest_that_fits(1, attempt) == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
def test_every_error_that_says_memory_halves_a_pass(error: Exception) -> None:
    def attempt(cells: int) -> None:
        if cells > 1:
            raise error

    assert largest_that_fits(8, attempt) == 1


def test_an_error_that_is_not_memory_is_not_taken_for_it() -> None:
    def attempt(cells: int) -> None:
        raise RuntimeError("the teacher is broken")

    with pytest.raises(RuntimeError, match="the teacher is broken"):
        largest_that_fits(8, attempt)


@pytest.mark.parametrize("limit", range(1, 20))
@pytest.mark.parametrize("world", [1, 2, 3, 5, 8, 16])
def test_passes_are_few_and_of_equal_size(world: int, limit: int) -> None:
    batch = Batch(slice=4, contrastive_group=16, global_batch=64)  # four groups of four cells
    for rank in range(world):
        plan = step_plan(batch, rank, world)
        size = plan.evened(limit)
        assert size <= limit
        passes_of = [sum(len(group.slices) for group in groups) for groups in plan.in_passes(size)]
        assert sum(passes_of) == plan.num_mine
        if limit >= plan.num_mine:
            assert passes_of == [size]
        if limit >= plan.most_of_a_group:
            assert max(passes_of) == size
        else:
            assert -(-plan.most_of_a_group // size) == -(-plan.most_of_a_group // limit)


def test_preparing_leaves_weights_gradients_and_target_as_they_were() -> None:
    with prepared_parts() as (world, parts):
        before = copy.deepcopy(parts.state_dict())
        drawn = torch.get_rng_state()
        passes.try_pass(RUN, parts, synchronised(world, parts), step_plan(RUN.batch, 0, 1), world)
        for part in "model", "target":
            for name, value in before[part].items():
                assert torch.equal(parts.state_dict()[part][name], value), name
        assert all(weight.grad is None for weight in parts.model.parameters())
        assert torch.equal(torch.get_rng_state(), drawn)


def test_the_size_of_a_pass_can_be_asked_for_and_is_halved_where_it_has_not_fitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with prepared_parts() as (world, parts):
        plan = step_plan(RUN.batch, 0, 1)
        model = synchronised(world, parts)
        for asked, noted, wanted in [(None, None, 8), ("4", None, 4), ("3", None, 2), ("4", 4, 2), ("1", 2, 1)]:
            if asked:
                monkeypatch.setenv("MCF_CELLS_A_PASS", asked)
            prepare(RUN, parts, model, plan, world, noted)
            assert parts.cells_a_pass == wanted, (asked, noted)
            assert not parts.compiled


@pytest.mark.parametrize(
    ("name", "value"), [("MCF_CELLS_A_PASS", "0"), ("MCF_CELLS_A_PASS", "many"), ("MCF_COMPILE", "true")]
)
def test_a_setting_that_means_nothing_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with prepared_parts() as (world, parts), pytest.raises(DataError, match=f"{name} is '{value}'; possible: "):
        prepare(RUN, parts, synchronised(world, parts), step_plan(RUN.batch, 0, 1), world)


def test_compiled_networks_that_do_not_fit_take_fewer_cells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MCF_COMPILE", "1")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(Parts, "compile", lambda parts: setattr(parts, "compiled", True))

    def attempt(run: RunSpec, parts: Parts, *others: object) -> None:
        if parts.compiled and parts.cells_a_pass > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(passes, "try_pass", attempt)
    with prepared_parts() as (world, parts):
        prepare(RUN, parts, synchronised(world, parts), step_plan(RUN.batch, 0, 1), world)
        assert (parts.cells_a_pass, parts.compiled) == (2, True)


def test_float32_is_float32_on_a_gpu() -> None:
    torch.backends.cudnn.allow_tf32 = True  # as torch has it at first
    with joined_world():
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"


def test_only_a_pass_of_one_cell_that_does_not_fit_twice_ends_a_run(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path))

    def runs_out(cells: int) -> MemoryNote | None:
        if note := read_memory_note(store):  # a while ago, and not in the same step
            earlier = note.model_copy(update={"at": note.at - timedelta(minutes=1)})
            store.put(OUT_OF_MEMORY, earlier.model_dump_json().encode())
        return noted_before(store, "CUDA out of memory", cells)

    assert [runs_out(cells) for cells in (8, 4, 2, 1)] == [None] * 4
    note = read_memory_note(store)
    assert note is not None
    assert note.cells_a_pass == 1
    assert runs_out(1) is not None
