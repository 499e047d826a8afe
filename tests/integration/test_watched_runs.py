"""A run that is measured while it trains, by real workers: the numbers, and that nothing else changes."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.torchruns import (
    STEPS,
    final_state,
    small,
    torchrun,
    wait_for_checkpoint,
    workers_of,
)
from trainer.contract import RunSpec
from trainer.contract.records import Reading
from trainer.store.objects import DirectoryStore
from trainer.store.rundir import read_readings, read_result, read_sessions

EVERY = {"steps": 4, "share": 1}


@pytest.fixture(scope="module")
def evaluation(tiny_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    faces = {
        file.name: {"points68": [[float(i + number % 5), float(2 * i % 50)] for i in range(68)]}
        for number, file in enumerate(sorted(tiny_faces.iterdir()))
    }
    file = tmp_path_factory.mktemp("annotated") / "landmarks.json"
    file.write_text(json.dumps(faces))
    return {"held_out": 8, "landmarks": str(file)}


@pytest.fixture(scope="module")
def unwatched(tiny_faces: Path, evaluation: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(small(tiny_faces, evaluation=evaluation), tmp_path_factory.mktemp("runs") / "unwatched")


@pytest.fixture(scope="module")
def watched(tiny_faces: Path, evaluation: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = small(tiny_faces, evaluation={**evaluation, "every": EVERY})
    return trained(run, tmp_path_factory.mktemp("runs") / "watched")


def trained(run: RunSpec, folder: Path, **options: Any) -> Path:
    with torchrun(run, folder, **options) as agent:
        assert agent.wait(120) == 0, (folder / "log").read_text()[-3000:]
    return folder


def readings(folder: Path) -> tuple[Reading, ...]:
    return read_readings(DirectoryStore(str(folder))).readings


def numbers(reading: Reading) -> dict[str, float]:
    return {metric.name: metric.value for metric in reading.metrics}


def test_a_watched_run_ends_with_the_weights_and_numbers_of_an_unwatched_one(unwatched: Path, watched: Path) -> None:
    expected, found = final_state(unwatched, STEPS), final_state(watched, STEPS)
    assert all(expected[name].equal(found[name]) for name in expected)
    results = [read_result(DirectoryStore(str(folder))) for folder in (unwatched, watched)]
    assert results[0]
    assert results[1]
    assert results[0].probe == results[1].probe
    assert results[0].sanity == results[1].sanity
    assert readings(unwatched) == ()


def test_readings_are_of_the_steps_asked_for_and_begin_at_the_untrained_encoder(watched: Path) -> None:
    made = readings(watched)
    assert [reading.step for reading in made] == [0, 4, 8, 12, 16]
    assert [reading.images_seen for reading in made] == [step * 64 for step in (0, 4, 8, 12, 16)]
    names = {"probe/landmark_nme", "sanity/psnr", "sanity/retrieval_top1", "sanity/neighbour_nme"}
    assert all(numbers(reading).keys() == names for reading in made)
    result = read_result(DirectoryStore(str(watched)))
    assert result
    assert result.floors
    assert numbers(made[0])["probe/landmark_nme"] == pytest.approx(result.floors.random_encoder, rel=1e-9)
    [session] = read_sessions(DirectoryStore(str(watched)))
    assert session.last_reading == 16
    assert session.speed.reading_seconds > 0


def test_a_watched_run_that_is_killed_has_the_readings_of_one_that_is_not(
    tiny_faces: Path, evaluation: dict[str, Any], watched: Path, tmp_path: Path
) -> None:
    run, folder = small(tiny_faces, evaluation={**evaluation, "every": EVERY}), tmp_path / "killed"
    with torchrun(run, folder) as agent:
        wait_for_checkpoint(folder, 9, agent)
        workers_of(agent)[-1].kill()
        assert agent.wait(120) == 0, (folder / "log").read_text()[-3000:]
    assert len(read_sessions(DirectoryStore(str(folder)))) == 2
    assert [(r.step, numbers(r)) for r in readings(folder)] == [(r.step, numbers(r)) for r in readings(watched)]


def test_one_worker_reads_what_two_read(
    tiny_faces: Path, evaluation: dict[str, Any], watched: Path, tmp_path: Path
) -> None:
    alone = trained(small(tiny_faces, evaluation={**evaluation, "every": EVERY}), tmp_path / "alone", workers=1)
    for one, two in zip(readings(alone), readings(watched), strict=True):
        mine, theirs = numbers(one), numbers(two)
        # One image of eight is 12.5 %, and rounding may decide about it.
        assert mine.pop("sanity/retrieval_top1") == pytest.approx(theirs.pop("sanity/retrieval_top1"), abs=12.5)
        assert mine == pytest.approx(theirs, rel=1e-3)


def test_another_run_of_the_same_weights_takes_its_readings_over(
    tiny_faces: Path, evaluation: dict[str, Any], watched: Path, tmp_path: Path
) -> None:
    alike = {**evaluation, "every": EVERY, "folds": 5}
    run = small(tiny_faces, evaluation=alike)
    taken = trained(run, tmp_path / "taken", workers=1, MCF_WEIGHTS_URI=str(watched))
    assert readings(taken) == readings(watched)
    other = small(tiny_faces, evaluation={**alike, "folds": 4})
    assert other.pretraining == run.pretraining
    measured_otherwise = trained(other, tmp_path / "other", workers=1, MCF_WEIGHTS_URI=str(watched))
    assert readings(measured_otherwise) == ()
    for folder in taken, measured_otherwise:
        [session] = read_sessions(DirectoryStore(str(folder)))
        assert session.first_step == STEPS  # nothing was trained again
