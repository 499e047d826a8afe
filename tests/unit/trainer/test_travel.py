"""Gradients travel once a step, and while others are still computed."""

import json
import os
from pathlib import Path

import pytest

from tests.forks import forks
from tests.unit.trainer.travel import SENT


@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_gradients_travel_once_a_step_beside_the_backward_pass(how: str, tmp_path: Path) -> None:
    done = forks.run(
        "tests.unit.trainer.travel", str(tmp_path / "events"), how, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    events = json.loads((tmp_path / "events").read_text())
    weights = {event for event in events if event != SENT}
    sent = [place for place, event in enumerate(events) if event == SENT]
    assert len(sent) > 3
    # Two passes: every gradient is there twice, and nothing is sent before the second one begins.
    assert len(events) - len(sent) == 2 * len(weights)
    assert set(events[: sent[0]]) == weights
    # The first parts are on their way before half of the second pass's gradients are there.
    assert len([event for event in events[: sent[0]] if event != SENT]) < 1.5 * len(weights)
