"""The chart without a cluster: what it renders, what it refuses, and that values, schema and docs say the same."""

import functools
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.pods import ATTEMPT, PORT
from service.settings import Settings
from tests.chart.builtin import wrong_with
from tests.chart.matrix import BASE, EXAMPLES, MATRIX, OPTIONS, REFUSED, RUNS
from tests.chart.release import CHART, ROOT, find_helm, merged

HELM = find_helm()
pytestmark = pytest.mark.skipif(HELM is None, reason="needs helm on PATH or in ~/.cache/mcf-cluster/bin")
# A helm that was built without Kubernetes' version believes in one of long ago.
KUBERNETES = "1.35.4"

Object = dict[str, Any]


def helm(command: list[str], values: Object, chart: Path = CHART) -> "subprocess.CompletedProcess[str]":
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(merged(BASE, values), file)
        file.flush()
        return subprocess.run(
            [str(HELM), *command, str(chart), "--kube-version", KUBERNETES, "--values", file.name],
            capture_output=True, text=True,
        )  # fmt: skip


def render(values: Object) -> list[Object]:
    return _rendered(json.dumps(values))


@functools.cache
def _rendered(values: str) -> list[Object]:
    done = helm(["template", "mcf", "--namespace=faces"], json.loads(values))
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def of_kind(objects: list[Object], kind: str) -> dict[str, Object]:
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == kind}


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """(name, template) of everything that becomes a pod."""
    for each in objects:
        if each["kind"] == "Pod":
            yield each["metadata"]["name"], each
        elif each["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield each["metadata"]["name"], each["spec"]["template"]


def containers(objects: list[Object]) -> Iterator[tuple[str, Object, Object]]:
    for name, pod in pods(objects):
        for each in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            yield f"{name}/{each['name']}", pod["spec"], each


# ---------------------------------------------------------------- schema, values, docs


def test_the_schema_is_what_its_source_and_the_models_say(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "scripts/chart-schema", tmp_path], check=True)
    for made, kept in ("values.schema.json", CHART), ("values.md", ROOT / "docs"):
        assert (tmp_path / made).read_text() == (kept / made).read_text(), "run scripts/chart-schema"


def schema() -> Object:
    found: Object = json.loads((CHART / "values.schema.json").read_text())
    return found


def properties(part: Object, path: str = "") -> Iterator[tuple[str, Object]]:
    """Every value by its path, definitions followed."""
    for name, each in part.get("properties", {}).items():
        if "$ref" in each:
            each = {**schema()["definitions"][each["$ref"].rpartition("/")[2]], **each}
        yield f"{path}{name}", each
        yield from properties(each, f"{path}{name}.")
    if isinstance(inner := part.get("items"), dict):
        yield from properties(inner, f"{path.rstrip('.')}[].")


def test_every_value_is_described_and_every_object_is_closed() -> None:
    whole = schema()
    found = dict(properties(whole)) | dict(properties(whole["definitions"]["pool"], "pools.*."))
    assert len(found) > 150
    for path, part in found.items():
        assert len(part.get("description", "")) > 8, f"{path} is not described"
        if "properties" in part and "[]" not in path:
            assert part["additionalProperties"] is False, f"{path} takes any key"
    assert whole["additionalProperties"] is False
    assert whole["definitions"]["pool"]["additionalProperties"] is False


def test_values_and_schema_name_the_same() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    known = dict(properties(schema()))

    def check(part: Object, path: str = "") -> None:
        for name, value in part.items():
            assert f"{path}{name}" in known, f"values.yaml has {path}{name}, the schema has not"
            if isinstance(value, dict) and "properties" in known[f"{path}{name}"]:
                check(value, f"{path}{name}.")

    def find(path: str) -> bool:
        part: Any = values
        for name in path.split("."):
            if name not in part:
                return False
            part = part[name]
        return True

    check(values)
    # What the service has a default for is not said twice; `global` is Helm's.
    elsewhere = ("global", "service.settings.", "queues[]", "service.env[]", "mlflow.env[]")
    missing = [path for path in known if not path.startswith(elsewhere) and not find(path)]
    assert not missing, f"without a default in values.yaml: {missing}"


def test_every_setting_of_the_service_can_be_given() -> None:
    offered = {_snake(name) for name in schema()["properties"]["service"]["properties"]["settings"]["properties"]}
    [service] = [
        each for each in render({}) if each["metadata"]["name"] == "mcf-service" and each["kind"] == "ConfigMap"
    ]
    set_by_the_chart = {name.removeprefix("MCF_").lower() for name in service["data"] if name.startswith("MCF_")}
    left = set(Settings.model_fields) - offered - set_by_the_chart - {"token", "database_url"}
    assert not left, f"offer them in charts/mcf/values.schema.yaml under service.settings: {left}"


def test_links_of_webhooks_go_to_the_ingress_or_where_they_are_told_to() -> None:
    def address(**service: Any) -> str | None:
        [found] = [each for each in render({"service": service}) if "MCF_PORT" in each.get("data", {})]
        told: str | None = found["data"].get("MCF_PUBLIC_URL")
        return told

    own, other = {"enabled": True, "host": "mcf.example"}, {"publicUrl": "https://other.example"}
    assert address() is None
    assert address(ingress=own) == address(ingress=own, settings={"publicUrl": ""}) == "http://mcf.example"
    assert address(ingress=own | {"tlsSecret": "tls"}) == "https://mcf.example"
    assert address(ingress=own, settings=other) == address(settings=other) == "https://other.example"


def _snake(name: str) -> str:
    return re.sub("[A-Z]", lambda upper: f"_{upper[0].lower()}", name)


# ---------------------------------------------------------------- lint and matrix


@pytest.mark.parametrize("name", ["as it comes", "everything", "nothing"])
def test_lint(name: str) -> None:
    done = helm(["lint", "--strict"], MATRIX[name])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", [*MATRIX, *EXAMPLES])
def test_what_is_rendered_is_kubernetes(name: str) -> None:
    objects = render(MATRIX.get(name) or EXAMPLES.get(name, {}))
    assert len(objects) >= 7
    for each in objects:
        assert not (wrong := wrong_with(each)), f"{each['kind']} {each['metadata']['name']}: {wrong}"
        names = {**each["metadata"].get("labels", {}), "name": each["metadata"]["name"]}
        assert all(len(value) <= 63 for value in names.values()), names
    twice = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in objects]
    assert len(twice) == len(set(twice))


def test_examples_go_on_top_of_each_other() -> None:
    for name in "kueue.yaml", "volcano.yaml":
        [pools] = _pools(render(merged(EXAMPLES["gpus.yaml"], EXAMPLES[name])))
        assert pools["local"]["gpus"] == 8
        assert pools["local"]["queue"]["name"] == "research"
    objects = render(merged(EXAMPLES["spot.yaml"], EXAMPLES["own-servers.yaml"]))
    assert not of_kind(objects, "StatefulSet")
    assert list(of_kind(objects, "Deployment")) == ["mcf-service"]


@pytest.mark.parametrize(("what", "values", "words"), REFUSED, ids=[what for what, _, _ in REFUSED])
def test_what_cannot_be_meant_is_refused_in_words(what: str, values: Object, words: str) -> None:
    done = helm(["template", "mcf"], values)
    assert done.returncode != 0, f"{what} is let through"
    assert words in done.stderr


def test_every_option_makes_a_difference() -> None:
    """An option that changes nothing is one that a template forgot."""
    plain = _told(render({}))
    same = [name for name, values in OPTIONS.items() if values and _told(render(values)) == plain]
    assert not same


# ---------------------------------------------------------------- what every object keeps to


@pytest.mark.parametrize("name", ["as it comes", "everything", "everything on volcano"])
def test_every_container_is_confined(name: str) -> None:
    objects = render(MATRIX[name])
    found = list(containers(objects))
    assert len(found) >= 5
    for where, pod, container in found:
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, where
        assert security["runAsUser"] > 0, where
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, where
        confined = container["securityContext"]
        assert confined["readOnlyRootFilesystem"] is True, where
        assert confined["allowPrivilegeEscalation"] is False, where
        assert confined["capabilities"] == {"drop": ["ALL"]}, where
        assert "memory" in container["resources"]["limits"], where
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]), where
        assert all(value for value in pod.get("imagePullSecrets", [])), where
    # Only who asks the API server has a token for it.
    tokens = {name for name, pod in pods(objects) if pod["spec"].get("automountServiceAccountToken") is not False}
    assert tokens <= {"mcf-service", "mcf-uninstall"}
    for name, pod in pods(objects):
        for container in pod["spec"]["containers"]:
            lasting = pod["spec"].get("restartPolicy", "Always") == "Always"
            probes = {"startupProbe", "livenessProbe", "readinessProbe"} & set(container)
            assert len(probes) == (3 if lasting else 0), name


@pytest.mark.parametrize("name", [*MATRIX, *EXAMPLES])
def test_secrets_are_in_secrets_only(name: str) -> None:
    objects = render(MATRIX.get(name) or EXAMPLES.get(name, {}))
    secret = {
        value
        for each in of_kind(objects, "Secret").values()
        for key, value in each.get("stringData", {}).items()
        if key != "MLFLOW_TRACKING_USERNAME"
    }
    elsewhere = json.dumps([each for each in objects if each["kind"] != "Secret"])
    assert not [value for value in secret if value in elsewhere]
    assert all(len(value) >= 32 for value in secret)


def test_who_reads_something_restarts_when_it_changes() -> None:
    # Passwords are made up anew where there is no cluster to ask.
    nothing_made_up: Object = {
        "postgresql": {"enabled": False}, "database": {"existingSecret": "x"},
        "service": {"token": {"existingSecret": "x"}},
        "mlflow": {"auth": {"enabled": False}, "database": {"existingSecret": "x"}},
    }  # fmt: skip
    plain = _annotations(nothing_made_up)
    for values, who, what in [
        ({"service": {"settings": {"tickSeconds": 3}}}, {"mcf-service"}, "checksum/config"),
        ({"pools": {"more": {}}}, {"mcf-service"}, "checksum/pools"),
        ({"mlflow": {"workers": 3}}, {"mcf-mlflow"}, "checksum/config"),
        ({"store": {"region": "eu-central-1"}}, {"mcf-mlflow", "mcf-service"}, "checksum/config"),
    ]:
        changed = _annotations(merged(nothing_made_up, values))
        differ = {name for name in plain if plain[name] != changed[name]}
        assert differ == who
        assert all(plain[name][what] != changed[name][what] for name in who)
    secrets = [_annotations(values) for values in ({}, {"service": {"port": 81}})]
    assert all(secrets[0][name]["checksum/secret"] != secrets[1][name]["checksum/secret"] for name in secrets[0])


def _annotations(values: Object) -> dict[str, Object]:
    return {name: pod["metadata"]["annotations"] for name, pod in pods(render(values)) if "test" not in name}


@pytest.mark.parametrize("scheduler", ["jobset", "volcano"])
def test_the_service_may_do_what_it_does_and_nothing_else(scheduler: str) -> None:
    objects = render({**(OPTIONS["volcano"] if scheduler == "volcano" else {}), "trainer": {"namespace": RUNS}})
    group, plural = ("batch.volcano.sh", "jobs") if scheduler == "volcano" else ("jobset.x-k8s.io", "jobsets")
    [role] = of_kind(objects, "Role").values()
    assert role["metadata"]["namespace"] == RUNS
    assert _rights(role) == {
        (group, plural): {"create", "get", "list", "watch", "delete"},
        **({("batch", "jobs"): {"create", "list", "watch", "delete"}} if scheduler == "jobset" else {}),
        ("", "pods"): {"list", "watch", *(["delete"] if scheduler == "volcano" else [])},
        ("", "events"): {"list", "watch"},
        ("", "pods/log"): {"get"},
    }
    [over_all] = of_kind(objects, "ClusterRole").values()
    assert _rights(over_all) == {("", "nodes"): {"list", "watch"}, ("", "pods"): {"list"}}
    [over_all] = of_kind(render({"rbac": {"clusterPods": False}}), "ClusterRole").values()
    assert _rights(over_all) == {("", "nodes"): {"list", "watch"}}
    for binding in [*of_kind(objects, "RoleBinding").values(), *of_kind(objects, "ClusterRoleBinding").values()]:
        assert [each["name"] for each in binding["subjects"]] == ["mcf-service"]


def test_the_rights_are_those_of_the_requests_that_the_code_makes() -> None:
    """Every call of the Kubernetes client in k8s/ is allowed, and nothing is allowed that no call needs."""
    code = "\n".join(path.read_text() for path in (ROOT / "k8s").glob("*.py"))
    verbs = {"create": {"create"}, "delete": {"delete"}, "get": {"get"}, "read": {"get"}, "list": {"list", "watch"}}
    kinds = {
        "namespaced_custom_object": "jobsets", "namespaced_pod": "pods", "namespaced_pod_log": "pods/log",
        "namespaced_job": "jobs", "namespaced_event": "events", "node": "nodes", "pod_for_all_namespaces": "all pods",
    }  # fmt: skip
    called = re.findall(
        r"\.((?:create|read|get|list|watch|patch|replace|delete|connect)_[a-z_]*(?:custom|namespace|node)[a-z_]*)\(?",
        code,
    )
    wanted: dict[str, set[str]] = {}
    for call in called:
        verb, _, kind = call.partition("_")
        wanted.setdefault(kinds[kind], set()).update(verbs[verb])
    # Counted from time to time, never watched.
    wanted["all pods"] = {"list"}
    # With Volcano alone.
    wanted["pods"].remove("delete")
    objects = render({})
    granted = {kind: found for role in of_kind(objects, "Role").values() for (_, kind), found in _rights(role).items()}
    over_all = {
        kind: found for role in of_kind(objects, "ClusterRole").values() for (_, kind), found in _rights(role).items()
    }
    assert {**granted, "nodes": over_all["nodes"], "all pods": over_all["pods"]} == wanted


def test_runs_have_a_login_of_their_own() -> None:
    objects = render({"trainer": {"namespace": RUNS}})
    secrets = [each for each in objects if each["kind"] == "Secret"]
    there = {each["metadata"]["name"] for each in secrets if each["metadata"]["namespace"] == RUNS}
    assert there == {"mcf-mlflow-runs"}, "the administrator's login is where runs are"
    assert (
        len({each["stringData"]["MLFLOW_TRACKING_PASSWORD"] for each in secrets if each["metadata"]["name"] in there})
        == 1
    )
    [pools] = _pools(objects)
    assert pools["local"]["env_from_secrets"] == ["mcf-mlflow-runs"]
    service = of_kind(objects, "Deployment")["mcf-service"]["spec"]["template"]["spec"]["containers"][0]
    assert {"secretRef": {"name": "mcf-mlflow"}} in service["envFrom"]


def test_replicas_stay_apart_over_an_upgrade_and_leave_a_dead_node_soon_or_when_its_user_says() -> None:
    def spec(**service: Any) -> Object:
        found: Object = of_kind(render({"service": service}), "Deployment")["mcf-service"]["spec"]["template"]["spec"]
        return found

    [spread] = spec()["topologySpreadConstraints"]
    assert spread["matchLabelKeys"] == ["pod-template-hash"]
    dead = {f"node.kubernetes.io/{what}": 20 for what in ("unreachable", "not-ready")}
    assert {each["key"]: each["tolerationSeconds"] for each in spec()["tolerations"]} == dead
    longer = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}
    assert [each.get("tolerationSeconds") for each in spec(tolerations=[longer])["tolerations"]] == [None, 20]
    assert spec(tolerations=[{"operator": "Exists"}])["tolerations"] == [{"operator": "Exists"}]


@pytest.mark.parametrize("namespace", ["", "runs"])
def test_the_service_may_knock_at_the_pods_of_runs_and_nobody_else_may(namespace: str) -> None:
    objects = render({"networkPolicy": {"egressPorts": [443]}, "trainer": {"namespace": namespace}})
    policies = of_kind(objects, "NetworkPolicy")
    each_other, knock = policies["mcf-runs"]["spec"]["ingress"]
    runs = {"matchExpressions": [{"key": ATTEMPT, "operator": "Exists"}]}
    assert each_other == {"from": [{"podSelector": runs}]}
    [who] = knock["from"]
    assert who["podSelector"] == policies["mcf-service"]["spec"]["podSelector"]
    assert ("namespaceSelector" in who) == bool(namespace)
    assert knock["ports"] == [{"port": PORT}]
    [peer] = [
        to for rule in policies["mcf-service"]["spec"]["egress"] for to in rule.get("to", []) if runs in to.values()
    ]
    assert ("namespaceSelector" in peer) == bool(namespace)


def test_a_pool_gets_what_it_does_not_say() -> None:
    values = merged(OPTIONS["keys"], OPTIONS["registry"])
    values = merged(values, {**OPTIONS["irsa"], "pools": {"gpu": {"image": "x:1", "env": {"AWS_REGION": "here"}}}})
    [pools] = _pools(render(values))
    assert pools["local"]["image"] == "registry.example/team/mcf-trainer:0.1.0"
    assert pools["local"]["image_pull_secrets"] == ["pull"]
    assert pools["local"]["service_account"] == "mcf-runs"
    assert pools["local"]["env_from_secrets"] == ["s3", "mcf-mlflow-runs"]
    assert pools["local"]["env"]["AWS_ENDPOINT_URL"] == "http://s3.example:9000"
    assert pools["gpu"]["image"] == "x:1"
    assert "image_pull_policy" not in pools["gpu"]
    assert pools["gpu"]["env"]["AWS_REGION"] == "here"


def test_the_service_understands_the_pools_it_is_given(tmp_path: Path) -> None:
    from k8s.pools import read_pools

    for values in [*MATRIX.values(), *EXAMPLES.values()]:
        [pools] = _pools(render(values))
        (tmp_path / "pools.yaml").write_text(yaml.safe_dump(pools))
        assert set(read_pools(tmp_path / "pools.yaml")) == set(pools)


@pytest.mark.parametrize("name", ["everything", "everything on volcano"])
def test_what_outlives_the_release(name: str) -> None:
    """Losing these would lock people out of a kept volume, or stop running attempts."""
    kept = {
        (each["kind"], each["metadata"]["name"])
        for each in render(MATRIX[name])
        if each["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep"
    }
    queue = "Queue" if "volcano" in name else "LocalQueue"
    assert kept == {("Secret", "mcf-postgresql"), ("ServiceAccount", "mcf-runs"), (queue, "research")}
    assert ("Secret", "mcf-mlflow-runs") in {
        (each["kind"], each["metadata"]["name"])
        for each in render({})
        if each["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep"
    }


def test_notes_end_with_what_to_type(tmp_path: Path) -> None:
    # `helm template` leaves the notes out: here they are a manifest.
    shutil.copytree(CHART, tmp_path / "mcf")
    (tmp_path / "mcf/templates/NOTES.txt").rename(tmp_path / "mcf/notes.txt")
    (tmp_path / "mcf/templates/notes.yaml").write_text(
        'kind: Notes\nmetadata: {name: notes}\ntext: |\n  {{- tpl (.Files.Get "notes.txt") . | nindent 2 }}\n'
    )

    def notes(values: Object) -> str:
        done = helm(["template", "mcf", "--namespace=faces"], values, tmp_path / "mcf")
        [found] = [each for each in yaml.safe_load_all(done.stdout) if each and each["kind"] == "Notes"]
        text: str = found["text"]
        return text

    for values in {}, OPTIONS["ingress"], OPTIONS["volcano"]:
        assert "helm test mcf --namespace faces" in notes(values)
        assert "mcf submit" in notes(values)
        assert ("port-forward" in notes(values)) == (values is not OPTIONS["ingress"])
    assert "MCF_URL=https://mcf.example" in notes(OPTIONS["ingress"])
    assert "No credentials for s3://bucket/mcf" in notes({})
    assert "No credentials" not in notes(OPTIONS["keys"])


def _rights(role: Object) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for rule in role["rules"]:
        for group, kind in itertools.product(rule["apiGroups"], rule["resources"]):
            found.setdefault((group, kind), set()).update(rule["verbs"])
    return found


def _pools(objects: list[Object]) -> list[Object]:
    return [yaml.safe_load(each["data"]["pools.yaml"]) for each in objects if "pools.yaml" in each.get("data", {})]


def _told(objects: list[Object]) -> str:
    """Without what is made up anew each time."""
    text = json.dumps([each for each in objects if each["kind"] != "Secret"], sort_keys=True)
    return re.sub(r'"checksum/[a-z-]+": "[0-9a-f]+"', "", text) + str(sorted(of_kind(objects, "Secret")))


def test_numbers_and_booleans_are_text_where_kubernetes_wants_text_and_whole_where_it_wants_numbers() -> None:
    taint = {"key": "gpu", "value": True, "effect": "NoSchedule", "tolerationSeconds": 30_000_000}
    objects = render(
        {
            "service": {
                "env": [
                    {"name": "A", "value": 1_000_650_000},
                    {"name": "B", "value": False},
                    {"name": "C", "value": 0.5},
                ],
                "settings": {"maxConcurrentRuns": 12_345_678},
                "tolerations": [taint],
            },
            "mlflow": {"env": [{"name": "D", "value": 7}]},
            "postgresql": {"uid": 1_000_650_000},
            "pools": {"gpu": {"gpus": 1, "run_as_user": 1_000_650_000, "tolerations": [taint]}},
        }
    )
    env = {each["name"]: each.get("value") for _, _, one in containers(objects) for each in one.get("env", [])}
    assert [env[name] for name in "ABCD"] == ["1000650000", "false", "0.5", "7"]
    assert of_kind(objects, "ConfigMap")["mcf-service"]["data"]["MCF_MAX_CONCURRENT_RUNS"] == "12345678"
    service = of_kind(objects, "Deployment")["mcf-service"]["spec"]["template"]["spec"]
    assert service["tolerations"][0] == taint | {"value": "true"}
    database = of_kind(objects, "StatefulSet")["mcf-postgresql"]["spec"]["template"]["spec"]
    assert database["securityContext"]["runAsUser"] == database["securityContext"]["fsGroup"] == 1_000_650_000
    passwd = of_kind(objects, "ConfigMap")["mcf-postgresql"]["data"]["passwd"]
    assert passwd.startswith("postgres:x:1000650000:1000650000:")
    pool = yaml.safe_load(of_kind(objects, "ConfigMap")["mcf-runs-pools"]["data"]["pools.yaml"])["gpu"]
    assert (pool["run_as_user"], pool["tolerations"]) == (1_000_650_000, [taint | {"value": "true"}])
