"""Gradients travel once a step, and while others are still computed."""

import json
import os
from pathlib import Path

import pytest

from tests.conftest import free_port
from tests.forks import forks
from tests.unit.trainer.travel import SENT


@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_gradients_travel_once_a_step_beside_the_backward_pass(how: str, tmp_path: Path) -> None:
    port = str(free_port())
    ranks = []
    for rank in "01":
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        log = (tmp_path / rank).open("wb+")
        ranks.append(
            forks.start(
                "tests.unit.trainer.travel", str(tmp_path / "events"), how, output=log, env={**os.environ, **place}
            )
        )
    for rank, process in enumerate(ranks):
        assert process.wait(timeout=300) == 0, (tmp_path / str(rank)).read_text()[-3000:]
    events = json.loads((tmp_path / "events").read_text())
    weights = {event for event in events if event != SENT}
    sent = [place for place, event in enumerate(events) if event == SENT]
    assert len(sent) > 3
    # Two passes: every gradient is there twice, and nothing is sent before the second one begins.
    assert len(events) - len(sent) == 2 * len(weights)
    assert set(events[: sent[0]]) == weights
    # The first parts are on their way before half of the second pass's gradients are there.
    assert len([event for event in events[: sent[0]] if event != SENT]) < 1.5 * len(weights)
