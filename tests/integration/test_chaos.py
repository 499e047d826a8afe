"""The promise the others add up to: kill what you like, the numbers stay."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import chaos
from trainer.resolve import check_and_resolve
from trainer.store.objects import open_store
from trainer.store.rundir import read_result


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kills_of_service_worker_agent_and_mlflow_change_no_number(tiny_faces: Path, tmp_path: Path) -> None:
    request = chaos.request(tiny_faces, steps=240, ratios=[0.75], seeds=1)
    [arm] = check_and_resolve(request).arms
    (tmp_path / "spec.json").write_text(arm.runs[0].model_dump_json())
    alone = tmp_path / "alone"
    trainer = [sys.executable, "-m", "trainer.main", "--spec", str(tmp_path / "spec.json")]
    subprocess.run(trainer, env={**os.environ, "MCF_RUN_URI": str(alone)}, check=True)
    undisturbed = read_result(open_store(str(alone)))
    assert undisturbed
    # Two elastic nodes under fire take the steps that one quiet process takes.
    disturbed = chaos.run_once(tmp_path / "storm", request, kills=len(chaos.KINDS), seed=0, seconds=400)
    chaos.compare({f"{arm.name} seed=0": chaos.flat(undisturbed)}, disturbed)
