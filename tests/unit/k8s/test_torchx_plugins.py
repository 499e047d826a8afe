"""The `torchx` command line, as installed: it knows our schedulers beside its own, and prints what they would send."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from torchx.schedulers import DEFAULT_SCHEDULER_MODULES

from tests.unit.k8s.test_manifests import CPU, GPU

REPOSITORY = Path(__file__).parents[3]
POOLS = {"cpu": CPU, "a100-spot": {**GPU, "queue": {"kind": "volcano", "name": "research"}}}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Surroundings in which this tree is installed, whatever the environment's own installation says."""
    folder = tmp_path_factory.mktemp("installed")
    info = folder / "mcf-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mcf\nVersion: 0.1.0\n")
    points = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [
        line
        for group, found in points.items()
        for line in [f"[{group}]", *(f"{name} = {path}" for name, path in sorted(found.items()))]
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (folder / "pools.yaml").write_text(yaml.dump(POOLS))
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("MCF_", "KUBE", "TORCHX"))},
        "PYTHONPATH": f"{folder}:{REPOSITORY}",
        "MCF_POOLS": str(folder / "pools.yaml"),
        "MCF_NAMESPACE": "faces",
        "KUBECONFIG": str(folder / "none"),
    }


def torchx(installed: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("torchx"), *arguments]
    return subprocess.run(command, env=installed, capture_output=True, text=True, timeout=120)


def printed(installed: dict[str, str], scheduler: str, options: str, *component: str) -> dict[str, Any]:
    """The manifest of a dry run."""
    ran = torchx(installed, "run", "--dryrun", "-s", scheduler, "-cfg", options, *component)
    assert ran.returncode == 0, ran.stderr
    manifest: dict[str, Any] = json.loads(ran.stdout.partition("=== SCHEDULER REQUEST ===")[2])
    return manifest


def test_ours_are_listed_beside_torchx_own(installed: dict[str, str]) -> None:
    shown = torchx(installed, "runopts")
    assert shown.returncode == 0, shown.stderr
    listed = set(re.findall(r"^(\w+):", shown.stdout, re.MULTILINE))
    assert listed == DEFAULT_SCHEDULER_MODULES.keys() - {"ray"} | {"mcf_jobset", "mcf_volcano"}


def test_run_options_say_which_pools_there_are(installed: dict[str, str]) -> None:
    shown = torchx(installed, "runopts", "mcf_volcano").stdout
    assert "node pool, image and all: a100-spot, cpu" in shown
    assert "processes_per_node=PROCESSES_PER_NODE (int" in shown
    nothing = {name: value for name, value in installed.items() if name != "MCF_POOLS"}
    assert "MCF_POOLS names none" in torchx(nothing, "runopts", "mcf_volcano").stdout


DDP = ("dist.ddp", "-j", "1:4x8", "-m", "trainer.main", "--env", "MCF_ATTEMPT=1", "--", "--spec", "s3://mcf/spec.json")


def test_a_component_of_torchx_becomes_a_volcano_job(installed: dict[str, str]) -> None:
    vcjob = printed(installed, "mcf_volcano", "pool=a100-spot,processes_per_node=8", *DDP)
    name = vcjob["metadata"]["name"]
    assert (vcjob["kind"], vcjob["metadata"]["namespace"], vcjob["spec"]["queue"]) == ("Job", "faces", "research")
    store, workers = vcjob["spec"]["tasks"]
    assert (workers["replicas"], workers["minAvailable"]) == (4, 1)
    assert store["template"]["spec"]["containers"][0]["command"] == [
        "python",
        "-m",
        "trainer.elastic.rendezvous",
        "29400",
    ]
    [node] = workers["template"]["spec"]["containers"]
    assert node["resources"]["limits"]["nvidia.com/gpu"] == "8"
    # Its agents meet in the store's pod, and not where the component would have them meet.
    shell, flag, line = node["command"]
    assert (shell, flag) == ("bash", "-c")
    assert f"--rdzv_endpoint $PET_RDZV_ENDPOINT --rdzv_id '{name.removeprefix('mcf-')}' --nnodes 1:4" in line
    told = {each["name"]: each.get("value", "") for each in node["env"]}
    assert told["PET_RDZV_ENDPOINT"] == f"{name}-rendezvous-0.{name}:29400"
    assert told["PET_MAX_RESTARTS"] == "20"
    assert "is_host=false" in told["PET_RDZV_CONF"]
    assert told["TORCHX_JOB_ID"] == f"mcf_volcano://torchx/{name.removeprefix('mcf-')}"


def test_a_component_of_torchx_becomes_a_jobset(installed: dict[str, str]) -> None:
    jobset = printed(installed, "mcf_jobset", "pool=cpu,processes_per_node=2", "dist.ddp", "-j", "1x2", "-m", "x")
    assert (jobset["kind"], jobset["metadata"]["namespace"]) == ("JobSet", "faces")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("processes_per_node=8", "missing required option: `pool`"),
        ("pool=cpu", "missing required option: `processes_per_node`"),
        ("pool=h100,processes_per_node=8", "placement.pool: asked for h100; possible: a100-spot, cpu"),
    ],
)
def test_what_is_wrong_is_named(installed: dict[str, str], options: str, words: str) -> None:
    ran = torchx(installed, "run", "--dryrun", "-s", "mcf_volcano", "-cfg", options, *DDP)
    assert ran.returncode
    assert words in ran.stderr
