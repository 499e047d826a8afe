"""One worker of a run: torchrun [...] -m trainer.main --spec FILE

    MCF_RUN_URI     where the run leaves its records; ./runs/<first 12 of the spec's digest> by default
    MCF_ATTEMPT     number of this attempt, 1 by default
    MLFLOW_RUN_ID   log there (MLFLOW_TRACKING_URI says where that is); without it nothing is logged to MLflow
    MCF_WEIGHTS_URI another run's directory, of the same pretraining: what it has trained and measured is not done again
    MCF_COMPILE     1 = torch.compile the networks, 0 = do not; default: on a GPU
    MCF_CELLS_A_PASS  cells that go through the networks together; default: what the machine holds (trainer/passes.py)
    MCF_TEACHER_CACHE_GIB   keep the teacher's features of the training images (trainer/teachers/tapcache.py)
    MCF_PIXEL_CACHE_GIB     keep decoded images for all runs of this node (trainer/data/kept.py)

Exit code: 0 succeeded, 1 failed (outcome.json says so when trying again is no use), 143 interrupted.
"""

import argparse
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from trainer.conclude import conclude, painter, taken_over
from trainer.contract import RunSpec, records
from trainer.contract.records import DONE, Checkpoint, FaultNote, MemoryNote, Outcome, Verdict
from trainer.data.batches import cores, decoders, ranks_here, slices, split_of
from trainer.data.manifest import DataError, Rows, open_images
from trainer.data.nvjpeg import check_decoder
from trainer.elastic import kills
from trainer.elastic.blame import Fault, fault_of, is_clusters
from trainer.elastic.distributed import NotEnoughGpus, World, joined_world
from trainer.elastic.stop import INTERRUPTED, die_with_parent, exit_on_request, stop_agent
from trainer.elastic.waiting import on_first
from trainer.evaluation.evaluate import Reader
from trainer.evaluation.mask_points import mask_points, num_without
from trainer.evaluation.probe import probe_task
from trainer.evaluation.stages.fitting import Diverged
from trainer.evaluation.stages.runner import Faces, check_stage, run_stages
from trainer.loop import NonFiniteLoss, Parts, fit, synchronised
from trainer.method.grid import TooManyWorkers, step_plan, teams
from trainer.method.optim import adamw
from trainer.passes import OutOfMemory, prepare, ran_out_of_memory
from trainer.state.checkpoint import CheckpointStore, OtherRun
from trainer.state.hostcopy import HostCopy
from trainer.state.keeper import Keeper
from trainer.store.objects import StorageError, Store, open_store, split_uri
from trainer.store.rundir import list_checkpoints, read_fault, read_memory_note, read_outcome, read_spec
from trainer.teachers import TeacherError
from trainer.teachers import build as build_teacher
from trainer.teachers.comparing import user_comparison
from trainer.teachers.tapcache import TapCache, cache_bytes
from trainer.tracking.journal import Journal
from trainer.tracking.log import RunLog
from trainer.tracking.report import RankZero, Silent
from trainer.tracking.speed import Loading, Speedometer, images_at_peak
from trainer.usercode.loading import UserCodeError
from trainer.watch import Watch
from trainer.weights.files import WeightsError
from trainer.weights.initial import start

logger = logging.getLogger("trainer")

# The run's own errors: every other attempt would meet them again.
OWN_ERRORS = (NonFiniteLoss, Diverged, DataError, TeacherError, WeightsError, UserCodeError)
OUT_OF_MEMORY = "OutOfMemory"
# Ranks that run out of memory in the same step do so at about the same time, and that is once.
SAME_STEP = timedelta(seconds=15)
# Wrong about where or how it was started; the run itself is none the worse.
START_ERRORS = (TooManyWorkers, NotEnoughGpus, OtherRun)

# With the pauses between them more than a minute: an object store is away that long when it fails over.
STORE_ATTEMPTS = "12"


def main(argv: Sequence[str] | None = None) -> int:
    die_with_parent()
    exit_on_request()
    os.environ.setdefault("AWS_MAX_ATTEMPTS", STORE_ATTEMPTS)
    rank = os.environ.get("RANK", "0")
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)  # tells at length where it found its credentials
    parser = argparse.ArgumentParser(prog="trainer.main", description="Train one run.")
    parser.add_argument("--spec", required=True, help="RunSpec as JSON: a path or an s3:// address")
    folder, name = split_uri(parser.parse_args(argv).spec)
    text = open_store(folder).get(name)
    try:
        run = RunSpec.model_validate_json(text)
    except ValidationError as error:
        if uri := os.environ.get("MCF_RUN_URI"):
            fail(open_store(uri), f"this version of mcf cannot read the spec: {error}", type(error).__name__)
        stop_agent()
        raise
    store = open_store(os.environ.get("MCF_RUN_URI", f"runs/{run.digest[:12]}"))
    if outcome := read_outcome(store):
        return over_already(store, outcome)
    if (count := kills.since_a_step()) >= kills.MOST:
        reason = (
            f"its workers were killed {count} times before they took a step (SIGKILL), as the kernel does where memory "
            "runs out: give it more memory, or lower batch.slice or the sizes of the networks"
        )
        end(run, store, Fault(OUT_OF_MEMORY, "", reason))
        stop_agent()
        return 1
    # Before anything is done: what is noted now, another start has met.
    before = read_fault(store)
    try:
        return train(run, store)
    except START_ERRORS as error:
        logger.error("%s: %s", type(error).__name__, error)
    except Exception as error:
        if not (fault := own_end(store, before, error)):
            raise  # the agent starts the workers once more
        end(run, store, fault)
    stop_agent()
    return 1


def end(run: RunSpec, store: Store, fault: Fault) -> None:
    """The run has ended for good, and nobody needs its copies in memory."""
    logger.error("%s: %s", fault.kind, fault.reason)
    fail(store, fault.reason, fault.kind)
    HostCopy(store.uri, run.pretraining).remove()


def fail(store: Store, reason: str, kind: str) -> None:
    """The run has ended for good."""
    outcome = Outcome(
        verdict=Verdict.FAILED, step=newest_step(store), reason=reason, kind=kind, ended_at=datetime.now(UTC)
    )
    store.put(records.OUTCOME, outcome.model_dump_json(indent=1).encode())


def newest_step(store: Store) -> int:
    """Of the newest checkpoint, 0 without one. Raises StorageError."""
    kept = list_checkpoints(store)
    return kept[-1].step if kept else 0


def own_end(store: Store, before: FaultNote | None, error: Exception) -> Fault | None:
    """The error, where it is the run's own and ends it. What may be an accident once is noted, and ends it twice."""
    if isinstance(error, OWN_ERRORS):
        return Fault(type(error).__name__, "", str(error))
    if ran_out_of_memory(error):
        if not (first := noted_before(store, str(error), error.cells if isinstance(error, OutOfMemory) else 1)):
            return None
        when = f"at {first.at:%Y-%m-%d %H:%M} UTC and now"
        reason = f"out of memory twice, {when} ({error}); lower batch.slice, or slice of a stage"
        return Fault(OUT_OF_MEMORY, "", reason)
    if is_clusters(error):
        return None
    fault, step = fault_of(error), newest_step(store)
    if before and before.is_again(fault.kind, fault.place, step):
        return fault
    note = FaultNote(at=datetime.now(UTC), step=step, kind=fault.kind, place=fault.place, reason=fault.reason)
    store.put(records.FAULT, note.model_dump_json(indent=1).encode())
    return None


def noted_before(store: Store, reason: str, cells: int) -> MemoryNote | None:
    """The note of an earlier time that memory ran out; None, and a note is made, when this is the first.

    A pass of several cells that is too large is no end: it is noted, and the next one is smaller.
    """
    now = datetime.now(UTC)
    note = read_memory_note(store)
    if note and now - note.at <= SAME_STEP:  # another worker's of the same step
        return None
    if note is None or cells > 1 or note.cells_a_pass > 1:
        made = MemoryNote(at=now, reason=reason, cells_a_pass=cells)
        store.put(records.OUT_OF_MEMORY, made.model_dump_json(indent=1).encode())
        return None
    return note


def over_already(store: Store, outcome: Outcome) -> int:
    """A run ends once: how it did is the answer to every later start."""
    logger.info("the run in %s has %s already: %s", store.uri, outcome.verdict, outcome.reason or "nothing to do")
    if outcome.verdict == Verdict.SUCCEEDED:
        return 0
    stop_agent()
    return 1


def train(run: RunSpec, store: Store) -> int:
    """Join the other workers, train, and as rank 0 write down what came of it. Returns the exit code."""
    with joined_world() as world:
        log_settings(run, world)
        check_decoder(run, world.device)
        split = split_of(run)
        images = open_images(run.data, split.manifest)
        plan = step_plan(run.batch, world.rank, world.size)
        world.form_teams(teams(run.batch, world.size))
        checkpoints, host = checkpoints_in(store, run), HostCopy(store.uri, run.pretraining)
        earlier = open_store(address) if (address := os.environ.get("MCF_WEIGHTS_URI")) else None
        parts = build_parts(run, world, split.train)
        model = synchronised(world, parts)
        at_peak = images_at_peak(run, parts.teacher, world.device, world.size) if world.is_first else None
        memory = read_memory_note(store)
        prepare(run, parts, model, plan, world, memory.cells_a_pass if memory else None)
        reported = restore(parts, host, checkpoints, checkpoints_in(earlier, run) if earlier else None, world)
        steps = range(parts.step, run.total_steps(parts.num_images))
        points = mask_points(run, split.train)
        batches = slices(run, images, split.train, plan, steps, world.device, parts.cells_a_pass, points)
        first, unmarked = None, num_without(run, points, split.train)
        pools = Counter(filter(None, world.collect(os.environ.get("MCF_POOL"))))
        if world.is_first:
            if unmarked:
                logger.warning(
                    "%d of %d images have no landmarks: their masks cannot go by them", unmarked, len(split.train)
                )  # fmt: skip
            if not parts.step:
                # Now, and not after days of training.
                for stage in run.evaluation.stages.values():
                    check_stage(stage, Faces(split, images))
                if not run.evaluation.every:  # whoever reads the run looks at it at every start
                    probe_task(run)
            draw = painter(run, parts.model, images, split, world.device)
            loading = Loading(decoders(run, parts.num_images) * ranks_here(), cores())
            speed = Speedometer(run.batch.global_batch, loading, world.device, at_peak)
            speed.compile_seconds = parts.compile_seconds
            first = start_report(run, store, world, steps, draw, speed, reported, pools)
            batches = speed.timed(batches)
        watch = None
        if run.evaluation.every:
            # A reading may take minutes on CPUs, so it is no collective that gives up after two.
            team = world.patient(world.size)
            assert team
            reader = Reader(run, split, images, team, world.device)
            watch = Watch(run, reader, steps.stop, store, earlier, first)
            if not parts.step:
                # The time that it takes decides how many follow: none of it is a wait for who starts more slowly.
                world.collect(None)
                watch.read(0, parts.model)
        # Until here the others wait as long as starting up may take, and in the first step no longer.
        world.collect(None)
        with told_to_the_end(first):
            keeper = Keeper(world, host, checkpoints, run.cadence.checkpoint_steps, parts.step)
            with told_with_its_pass(parts):
                completed = fit(run, parts, plan, batches, world, keeper, first or Silent(), model, watch)
            keeper.close(completed=completed)
            if completed:
                known = taken_over(run, store, earlier) if earlier and world.is_first else None
                stages = run_stages(run, store, parts.model.encoder, Faces(split, images), first, world)

                def finish(alone: World) -> None:
                    assert first
                    conclude(run, store, parts, images, split, stages, known, first, alone.device, unmarked)

                # The others stay: a node that has ended well is a Job's sign that the run has (k8s/jobset.py).
                on_first(world, 1, finish)
        if first:
            first.close(DONE if completed else "training")
    return 0 if completed else INTERRUPTED


@contextmanager
def told_with_its_pass(parts: Parts) -> Iterator[None]:
    """Memory that has run out is told with the size of the pass: the next start takes a smaller one."""
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        raise OutOfMemory(str(error), parts.cells_a_pass) from error


@contextmanager
def told_to_the_end(report: RankZero | None) -> Iterator[None]:
    """An error, or a request to leave at once, does not take with it what MLflow has not got yet."""
    try:
        yield
    except BaseException as error:
        # A store that is away would only hold up the next start.
        if report and not isinstance(error, StorageError):
            report.abandon()
        raise


def build_parts(run: RunSpec, world: World, train: Rows) -> Parts:
    """Everything as it is before the first step, the same on every rank."""
    model, target = start(run)
    model.compare = user_comparison(run)
    model = model.to(world.device)
    target = target and target.to(world.device)
    teacher = build_teacher(run, world.device)
    taps = None
    if teacher and (limit := cache_bytes()) and kept_features_pay(world):
        taps = TapCache(run, teacher, train.digest, len(train), limit)
    return Parts(
        model=model, target=target, teacher=teacher, optimizer=adamw(model, run), num_images=len(train), taps=taps
    )


def kept_features_pay(world: World) -> bool:
    """Not on a GPU: 77 MB of features a slice come slower from a disk than the teacher makes them (0.78 x there)."""
    if world.device.type != "cuda":
        return True
    if world.is_first:
        logger.warning(
            "teacher_cache_gib is not applied: a GPU computes the teacher's features faster than it reads kept ones"
        )
    return False


def checkpoints_in(store: Store, run: RunSpec) -> CheckpointStore:
    """The checkpoints of this pretraining in a run's directory."""

    def is_same() -> bool:
        there = read_spec(store)
        return there is not None and there.pretraining == run.pretraining

    return CheckpointStore(
        store, spec_digest=run.pretraining, keep=run.cadence.keep_checkpoints, is_same=is_same
    )  # fmt: skip


def restore(
    parts: Parts, host: HostCopy, checkpoints: CheckpointStore, earlier: CheckpointStore | None, world: World
) -> Mapping[str, Any] | None:
    """Go on from the newest state there is, the same on every rank.

    That is the copy that a node's surviving agent still has in memory, or, where it is newer or nobody has one, the
    last checkpoint, of this run or of an `earlier` one of the same pretraining. Whoever has it sends it to the others.
    Returns the report's part of it, None at the beginning.
    """
    copy = host.newest() if world.is_first_of_node else None
    steps = world.collect(copy[0].step if copy else -1)
    source, where = steps.index(max(steps)), "a copy in memory"
    found = newest_checkpoint(checkpoints, earlier, world, max(steps)) if world.is_first else None
    if world.collect(found is not None)[0]:
        source, where = 0, "a checkpoint"
    else:
        found = copy
    state = world.broadcast_state(found[1] if found and world.rank == source else None, source)
    if state is None:
        return None
    parts.load_state_dict(state)
    if world.is_first:
        logger.info("resumed from step %d, from %s of rank %d", parts.step, where, source)
    return state["report"]


def newest_checkpoint(
    own: CheckpointStore, earlier: CheckpointStore | None, world: World, newer_than: int
) -> tuple[Checkpoint, dict[str, Any]] | None:  # fmt: skip
    found = own.restore_latest(world.device, newer_than)
    if earlier and (other := earlier.restore_latest(world.device, found[0].step if found else newer_than)):
        own.adopt(other[0])
        logger.info("step %d was reached in %s: its checkpoint is taken", other[0].step, earlier.store.uri)
        return other
    return found


def start_report(
    run: RunSpec, store: Store, world: World, steps: range, draw: Callable[[], bytes] | None, speed: Speedometer,
    reported: Mapping[str, Any] | None, pools: Mapping[str, int],
) -> RankZero:  # fmt: skip
    """Rank 0's report, with what the last session had not got rid of. `pools`: how many workers are in which."""
    store.put(records.SPEC, run.model_dump_json(indent=1).encode())
    attempt = int(os.environ.get("MCF_ATTEMPT", "1"))
    log = RunLog(os.environ.get("MLFLOW_TRACKING_URI"), os.environ.get("MLFLOW_RUN_ID"), attempt=attempt)
    journal = Journal(store, attempt, world.size, str(world.device), steps.stop, steps.start, pools)
    report = RankZero(run, log, journal, world_size=world.size, steps=steps, draw=draw, speed=speed)
    if reported:
        report.load_state_dict(reported)
    return report


def log_settings(run: RunSpec, world: World) -> None:
    """Say where the run is, and warn of every setting that is not applied here."""
    if not world.is_first:
        return
    logger.info("run %s on %d workers, %s", run.digest[:12], world.size, world.device)
    if run.precision == "bf16" and world.device.type == "cpu":
        logger.warning("precision bf16 is not applied: it needs a GPU, this run computes in float32")
    if run.teacher.source == "none" and run.teacher.weight != type(run.teacher)().weight:
        logger.warning("teacher.weight is not applied: without a teacher pixels.weight counts")
    if "pixel" not in run.loss_weights and run.pixels != type(run.pixels)():
        logger.warning("pixels is not applied: beside a teacher it takes a pixels.weight")


if __name__ == "__main__":
    sys.exit(main())
