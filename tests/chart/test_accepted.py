"""What a real API server says to what the chart renders: every object is tried, and none is made."""

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from tests.chart.builtin import OTHERS
from tests.chart.matrix import EXAMPLES, MATRIX, RUNS
from tests.chart.release import run
from tests.chart.test_render import Object, render

NAMESPACE = "chart-render"


@pytest.fixture(scope="module")
def namespaces(cluster: None) -> Iterator[None]:
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}}
        for name in (NAMESPACE, RUNS)
    ]
    run("kubectl", "apply", "--filename=-", text=yaml.safe_dump_all(objects))
    yield
    run("kubectl", "delete", "namespace", NAMESPACE, RUNS, "--wait=false")


# The strictest profile; a pod or a template of one that does not keep to it is warned of.
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}


@pytest.mark.usefixtures("namespaces")
def test_every_object_of_the_matrix_is_accepted() -> None:
    def refused(named: tuple[str, Object]) -> list[str]:
        name, values = named
        objects = [each for each in render(values) if f"{each['apiVersion']}/{each['kind']}" not in OTHERS]
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}).replace('"faces"', f'"{NAMESPACE}"')
        command = ["kubectl", "apply", "--server-side", "--dry-run=server", "--filename=-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True)
        return [f"{name}: {line}" for line in done.stderr.splitlines()]

    with ThreadPoolExecutor(2) as pool:
        wrong = [line for lines in pool.map(refused, {**MATRIX, **EXAMPLES}.items()) for line in lines]
    assert not wrong
