"""The API as a client meets it: answers, refusals and what they cost in SQL."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import yaml
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from pydantic import SecretStr, ValidationError
from sqlalchemy import select, update

from service.api.auth import COOKIE
from service.app import create_app
from service.compare.paper import read_back
from service.experiments import service as experiments
from service.pages.shared import Shared
from service.schemas.comparison import Comparison
from service.settings import Settings
from service.states import RunState
from service.tables import Charge, Run
from service.version import VERSION
from tests.unit.service.bench import Clock, Cluster, counting_statements, result
from trainer.contract import RunSpec
from trainer.resolve import check_and_resolve


class Scene:
    """A service over HTTP whose reconciler is not running: states are what the test writes."""

    def __init__(self, settings: Settings) -> None:
        self.cluster = Cluster(settings, Clock())
        self.app: FastAPI = create_app(settings, self.cluster)
        # Tests write to the database, and look at once.
        self.app.state.polled = Shared(kept_for=0)
        self.db = self.app.state.db
        self.db.migrate()
        self.http = TestClient(self.app, "http://localhost", raise_server_exceptions=False)

    def finish(self, how: RunState = RunState.SUCCEEDED) -> None:
        """Every run ends at once."""
        with self.db.write() as session:
            for run in session.scalars(select(Run)):
                found = result(RunSpec.model_validate(run.spec)).model_dump(mode="json")
                values = {"state": how, "step": 10, "result": found if how is RunState.SUCCEEDED else None}
                values |= {"process_seconds": 3600.0, "train_seconds": 1800.0, "ended_at": datetime.now(UTC)}
                session.execute(update(Run).where(Run.id == run.id).values(values))
                session.merge(Charge(run_id=run.id, experiment_id=run.home_id, process_seconds=3600.0))


@pytest.fixture
def scene(settings: Settings) -> Iterator[Scene]:
    made = Scene(settings)
    yield made
    made.db.engine.dispose()


# ---------------------------------------------------------------- submitting


def test_a_request_becomes_arms_and_runs(scene: Scene, spec: dict[str, Any]) -> None:
    answer = scene.http.post("/v1/experiments", json=spec)
    assert answer.status_code == 201
    made = answer.json()
    assert answer.headers["Location"] == f"/v1/experiments/{made['id']}"
    assert [arm["name"] for arm in made["arms"]] == ["mask_ratio=0.75", "mask_ratio=0.5"]
    assert made["counts"] == {"queued": 4}
    assert scene.http.get(f"/v1/experiments/{made['id']}").json() == made
    run = scene.http.get(f"/v1/runs/{made['arms'][0]['trials'][0]['run_id']}").json()
    assert run["total_steps"] == 10
    assert run["used_by"][0]["arm"] == "mask_ratio=0.75"


def test_yaml_says_the_same_as_json(scene: Scene, spec: dict[str, Any]) -> None:
    headers = {"Content-Type": "application/yaml"}
    answer = scene.http.post("/v1/experiments", content=yaml.safe_dump(spec), headers=headers)
    assert answer.status_code == 201
    again = scene.http.post("/v1/experiments", json=spec)
    assert again.json()["spec"] == answer.json()["spec"]


def test_the_same_key_and_body_is_the_same_experiment_and_another_body_is_refused(
    scene: Scene, spec: dict[str, Any]
) -> None:
    headers = {"Idempotency-Key": "abc"}
    first = scene.http.post("/v1/experiments", json=spec, headers=headers)
    second = scene.http.post("/v1/experiments", json=spec, headers=headers)
    assert (second.status_code, second.json()["id"]) == (201, first.json()["id"])
    assert second.headers["Idempotency-Replayed"] == "true"
    other = scene.http.post("/v1/experiments", json=spec | {"seeds": 1}, headers=headers)
    assert (other.status_code, other.json()["error"]) == (409, "key_reused")
    assert len(scene.http.get("/v1/experiments").json()["experiments"]) == 1


def test_the_same_request_again_shares_every_run_and_costs_nothing(scene: Scene, spec: dict[str, Any]) -> None:
    scene.http.post("/v1/experiments", json=spec)
    scene.finish()
    plan = scene.http.post("/v1/experiments?dry_run=true", json=spec).json()
    assert {run["already"] for run in plan["runs"]} == {"succeeded"}
    assert (plan["estimated_gpu_hours"], plan["launch_requests"]) == (0, [])
    again = scene.http.post("/v1/experiments", json=spec).json()
    assert (again["state"], again["progress"], again["gpu_hours"]) == ("succeeded", 1.0, 0.0)
    assert all(trial["shared"] for arm in again["arms"] for trial in arm["trials"])


def test_a_dry_run_shows_everything_and_does_nothing(scene: Scene, spec: dict[str, Any]) -> None:
    answer = scene.http.post("/v1/experiments?dry_run=true", json=spec)
    assert answer.status_code == 200
    plan = answer.json()
    assert (len(plan["arms"]), len(plan["runs"]), len(plan["launch_requests"])) == (2, 4, 4)
    assert plan["estimated_gpu_hours"] > 0
    assert "rough guess" in plan["estimate_basis"]
    assert plan["problems"] == []
    assert scene.http.get("/v1/experiments").json()["experiments"] == []


def test_the_estimate_uses_finished_runs_of_the_same_shape(scene: Scene, spec: dict[str, Any]) -> None:
    scene.http.post("/v1/experiments", json=spec)
    scene.finish()
    plan = scene.http.post("/v1/experiments?dry_run=true", json=spec | {"seeds": [5, 6]}).json()
    assert plan["estimated_gpu_hours"] == pytest.approx(4.0)
    assert plan["estimate_basis"] == "4 of 4 runs from finished runs of the same shape"


def test_every_problem_of_a_spec_is_listed_at_once(scene: Scene, spec: dict[str, Any]) -> None:
    base = spec["base"] | {"mask_ratio": 1.0, "nonsense": 1, "data": {"uri": "/nowhere"}}
    answer = scene.http.post("/v1/experiments", json=spec | {"base": base, "factors": {"no_such": [1]}})
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid_spec")
    fields = {problem["field"] for problem in answer.json()["problems"]}
    assert fields >= {"mask_ratio", "nonsense", "data.uri", "factors.no_such"}
    assert answer.json()["detail"].startswith(f"{len(answer.json()['problems'])} problems: ")
    relative = {"data": {"uri": "faces"}, "evaluation": {"images": "all", "labels": "labels.csv"}}
    answer = scene.http.post("/v1/experiments", json=spec | {"base": spec["base"] | relative})
    fields = {problem["field"] for problem in answer.json()["problems"]}
    assert fields == {"data.uri", "evaluation.images", "evaluation.labels"}


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (b"{", "application/json", "not JSON"),
        (b"[1]", "application/json", "list"),
        (b'{"a": NaN}', "application/json", "NaN"),
        (b'{"name": "\\ud800"}', "application/json", "surrogates"),
        (b'{"name": "\\u0000"}', "application/json", "NUL"),
        (b"a: &x [1]\nb: [*x, *x]", "application/yaml", "aliases"),
        (b"a: .nan", "application/yaml", "not a finite number"),
        (b"[" * 100_000, "application/json", "recursion"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused_with_the_reason(scene: Scene, body: bytes, kind: str, says: str) -> None:
    answer = scene.http.post("/v1/experiments", content=body, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["error"]) == (422, "unreadable_body")
    assert says.lower() in answer.json()["detail"].lower()


def test_bodies_and_experiments_of_absurd_size_are_refused_before_they_cost_anything(
    scene: Scene, spec: dict[str, Any]
) -> None:
    assert scene.http.post("/v1/experiments", content=b"x" * (2 << 20)).status_code == 413
    answer = scene.http.post("/v1/experiments", json=spec | {"seeds": 10**9})
    assert answer.status_code == 422
    assert answer.json()["problems"][0]["possible"] == "at most 10000"


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "path",
    [
        "/v1/experiments/nope",
        "/v1/experiments/nope/comparison.md",
        "/v1/experiments/nope/report.html",
        "/v1/runs/nope/logs",
    ],
)
def test_what_does_not_exist_is_404_and_says_where_to_look(scene: Scene, path: str) -> None:
    answer = scene.http.get(path)
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
    assert re.search(r"GET /v1/(experiments|runs) lists", answer.json()["detail"])


def test_the_list_pages_through_everything_newest_first(scene: Scene, spec: dict[str, Any]) -> None:
    ids = [scene.http.post("/v1/experiments", json=spec).json()["id"] for _ in range(5)]
    seen: list[str] = []
    cursor = None
    while True:
        page = scene.http.get("/v1/experiments", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        seen += [item["id"] for item in page["experiments"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert seen == ids[::-1]
    assert scene.http.get("/v1/experiments?cursor=2026_e1").status_code == 422


def test_the_list_of_runs_pages_through_all_newest_first(scene: Scene, spec: dict[str, Any]) -> None:
    one = spec | {"factors": {}}
    made = [
        scene.http.get("/v1/runs", params={"experiment": scene.http.post("/v1/experiments", json=asked).json()["id"]})
        for asked in (one | {"seeds": [seed, seed + 1]} for seed in (0, 10, 20))
    ]
    seen: list[str] = []
    page: dict[str, Any] = {"next_cursor": None}
    while not seen or page["next_cursor"]:
        page = scene.http.get(
            "/v1/runs", params={"limit": 1} | ({"cursor": page["next_cursor"]} if seen else {})
        ).json()
        seen += [run["id"] for run in page["runs"]]
    assert seen == [run["id"] for answer in reversed(made) for run in answer.json()["runs"]]
    assert scene.http.get("/v1/runs?cursor=r0123456789ab").status_code == 422


def test_runs_are_listed_by_experiment_and_state(scene: Scene, spec: dict[str, Any]) -> None:
    first = scene.http.post("/v1/experiments", json=spec).json()["id"]
    scene.http.post("/v1/experiments", json=spec | {"factors": {}, "seeds": [7]})
    listed = scene.http.get("/v1/runs", params={"experiment": first, "limit": 3}).json()
    rest = scene.http.get("/v1/runs", params={"experiment": first, "cursor": listed["next_cursor"]}).json()
    assert (len(listed["runs"]), len(rest["runs"]), rest["next_cursor"]) == (3, 1, None)
    assert scene.http.get("/v1/runs?state=failed").json()["runs"] == []
    assert len(scene.http.get("/v1/runs?state=queued&state=failed").json()["runs"]) == 5


def test_200_runs_cost_no_more_statements_than_two(scene: Scene, spec: dict[str, Any]) -> None:
    ratios = [round(0.3 + 0.005 * n, 4) for n in range(100)]
    small = experiments.submit(scene.db, check_and_resolve(spec | {"factors": {}, "seeds": 2}), None, "a")
    large = experiments.submit(scene.db, check_and_resolve(spec | {"factors": {"mask_ratio": ratios}}), None, "b")
    scene.finish()
    for path in "", "/comparison", "/comparison.md", "/comparison.csv", "/comparison.tex", "/report.html":
        counts = {}
        for name in small, large:
            with counting_statements(scene.db.engine) as statements:
                answer = scene.http.get(f"/v1/experiments/{name}{path}")
            assert answer.status_code == 200
            counts[name] = len(statements)
        assert counts[small] == counts[large] <= 8
    with counting_statements(scene.db.engine) as statements:
        listed = scene.http.get("/v1/experiments").json()["experiments"]
    assert [item["num_runs"] for item in listed] == [200, 2]
    assert len(statements) <= 6


def test_the_comparison_comes_in_every_form(scene: Scene, spec: dict[str, Any]) -> None:
    experiment = scene.http.post("/v1/experiments", json=spec | {"seeds": 3}).json()["id"]
    scene.finish()
    table = scene.http.get(f"/v1/experiments/{experiment}/comparison").json()
    assert [arm["rank"] for arm in table["arms"]] == [1, 2]
    forms = {"md": "text/markdown", "csv": "text/csv", "svg": "image/svg+xml", "tex": "application/x-tex"}
    for form, kind in forms.items():
        answer = scene.http.get(f"/v1/experiments/{experiment}/comparison.{form}")
        assert answer.headers["content-type"].startswith(kind)
        assert ("mask\\_ratio=0.75" if form == "tex" else "mask_ratio=0.75") in answer.text


def test_an_arm_tells_with_how_many_processes_it_was_trained(scene: Scene, spec: dict[str, Any]) -> None:
    experiment = scene.http.post("/v1/experiments", json=spec).json()["id"]
    with scene.db.write() as session:
        session.execute(update(Run).values(world_sizes=[8, 2, 8]))
    for arm in scene.http.get(f"/v1/experiments/{experiment}/comparison").json()["arms"]:
        assert arm["world_sizes"] == [2, 8]


def test_figures_come_as_files_or_say_why_not(scene: Scene, spec: dict[str, Any]) -> None:
    experiment = scene.http.post("/v1/experiments", json=spec | {"seeds": 3}).json()["id"]
    address = f"/v1/experiments/{experiment}/figures"
    answer = scene.http.get(f"{address}/forest.svg")
    assert (answer.status_code, answer.json()["error"]) == (409, "nothing_to_draw")
    scene.finish()
    kinds = {"svg": ("image/svg+xml", b"<?xml"), "png": ("image/png", b"\x89PNG"), "pdf": ("application/pdf", b"%PDF-")}
    for form, (kind, start) in kinds.items():
        answer = scene.http.get(f"{address}/forest.{form}")
        assert (answer.headers["content-type"], answer.content[:5].startswith(start)) == (kind, True)
    answer = scene.http.get(f"{address}/interactions.pdf")
    assert answer.status_code == 409
    assert "two factors or more" in answer.json()["detail"]
    for wrong in "forest.gif", "volcano.svg":
        answer = scene.http.get(f"{address}/{wrong}")
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
        assert "forest, factors, interactions, cost, forecast; each comes as svg, png, pdf" in answer.json()["detail"]


def test_the_report_holds_spec_numbers_and_digests_and_forbids_itself_to_load_anything(
    scene: Scene, spec: dict[str, Any]
) -> None:
    experiment = scene.http.post("/v1/experiments", json=spec | {"seeds": 3}).json()["id"]
    scene.finish()
    answer = scene.http.get(f"/v1/experiments/{experiment}/report.html")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    found = read_back(answer.text)
    table = Comparison.model_validate(scene.http.get(f"/v1/experiments/{experiment}/comparison").json())
    assert found.comparison == table.model_copy(update={"made_at": found.comparison.made_at})
    assert found.spec == scene.http.get(f"/v1/experiments/{experiment}").json()["spec"]
    with scene.db.read() as session:
        run = session.scalars(select(Run)).first()
    assert run
    assert {(item.what, item.sha256) for item in found.digests} == {
        ("data", run.spec["data"]["sha256"]), ("data subset", "0" * 64), ("held-out images", "1" * 64),
    }  # fmt: skip
    assert "28 images, subset seed 0" in {item.name for item in found.digests}


def test_logs_are_followed_until_the_run_has_ended(scene: Scene, spec: dict[str, Any]) -> None:
    made = scene.http.post("/v1/experiments", json=spec).json()
    run = made["arms"][0]["trials"][0]["run_id"]
    assert scene.http.get(f"/v1/runs/{run}/logs").text == ""
    scene.finish(RunState.CANCELLED)
    answer = scene.http.get(f"/v1/runs/{run}/logs?follow=true")
    assert answer.headers["content-type"].startswith("text/event-stream")


def test_cancelling_what_has_ended_and_retrying_what_has_not_failed_are_conflicts(
    scene: Scene, spec: dict[str, Any]
) -> None:
    experiment = scene.http.post("/v1/experiments", json=spec).json()["id"]
    scene.finish()
    for verb, error in ("cancel", "already_ended"), ("retry", "nothing_to_retry"):
        answer = scene.http.post(f"/v1/experiments/{experiment}/{verb}")
        assert (answer.status_code, answer.json()["error"]) == (409, error)


def test_probes_and_metrics(scene: Scene, spec: dict[str, Any]) -> None:
    scene.http.post("/v1/experiments", json=spec)
    assert scene.http.get("/healthz").json() == {"status": "ok", "version": VERSION}
    ready = scene.http.get("/readyz")
    assert (ready.status_code, ready.json()["database"], ready.json()["mlflow"]) == (200, "ok", "not configured")
    assert 'mcf_runs{state="queued"} 4.0' in scene.http.get("/metrics").text


# ---------------------------------------------------------------- protection, contract


def test_a_token_protects_all_but_the_probes(settings: Settings, spec: dict[str, Any]) -> None:
    http = Scene(settings.model_copy(update={"token": SecretStr("s3cret")})).http
    for headers in {}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}:
        answer = http.post("/v1/experiments", json=spec, headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (401, "unauthorized")
    assert http.get("/healthz").status_code == http.get("/metrics").status_code == 200
    assert http.get("/v1/experiments", headers={"Authorization": "Bearer s3cret"}).status_code == 200
    http.cookies.set(COOKIE, "s3cret")  # what the page's form sets
    assert http.get("/v1/experiments").status_code == 200


def test_it_does_not_listen_to_others_without_a_token() -> None:
    with pytest.raises(ValidationError, match="MCF_TOKEN"):
        Settings(host="0.0.0.0")
    assert Settings(host="0.0.0.0", token=SecretStr("x")).token


def test_the_document_describes_the_request_with_examples_that_are_specs(scene: Scene) -> None:
    document = scene.http.get("/openapi.json").json()
    content = document["paths"]["/v1/experiments"]["post"]["requestBody"]["content"]["application/json"]
    for example in content["examples"].values():
        answer = scene.http.post("/v1/experiments?dry_run=true", json=example["value"])
        # Their files are not here; all else is right.
        fields = {problem["field"] for problem in answer.json()["problems"]}
        assert fields <= {"data.uri", "teacher.source"}, json.dumps(answer.json())


def test_no_request_makes_the_service_fail(scene: Scene, spec: dict[str, Any]) -> None:
    scene.http.post("/v1/experiments", json=spec)
    schema = schemathesis.openapi.from_asgi("/openapi.json", scene.app)
    refused = schemathesis.checks.not_a_server_error

    for made in schema.include(path_regex="^/(v1|healthz|readyz|metrics)").get_all_operations():
        operation = made.ok()
        strategy = operation.as_strategy()
        _run(strategy, refused)


def _run(strategy: Any, check: Any) -> None:
    @hypothesis_settings(max_examples=12, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=strategy)
    def run(case: Any) -> None:
        case.call_and_validate(checks=[check])

    run()


def test_on_a_cluster_a_spec_names_one_of_its_pools(tmp_path: Path, spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="needs MCF_POOLS, a file of node pools, and MCF_STORE=s3://"):
        Settings(scheduler="jobset")
    (tmp_path / "pools.yaml").write_text("a100-spot: {image: mcf-trainer, gpus: 2}\n")
    settings = Settings(
        work_dir=tmp_path, scheduler="jobset", pools=tmp_path / "pools.yaml", store="s3://mcf/store"
    )  # fmt: skip
    http = Scene(settings).http
    answer = http.post("/v1/experiments?dry_run=true", json={**spec, "placement": {"pool": "a100"}})
    assert answer.status_code == 422
    assert answer.json()["problems"][0]["field"] == "placement.pool"
    assert answer.json()["problems"][0]["possible"] == "a100-spot"
    placement = {"pool": ["a100-spot", "a100"], "processes_per_node": 3}
    answer = http.post("/v1/experiments?dry_run=true", json={**spec, "placement": placement})
    asked = {problem["field"]: (problem["asked"], problem["possible"]) for problem in answer.json()["problems"]}
    assert asked == {
        "placement.pool": ("a100", "a100-spot"),
        "placement.processes_per_node": ("3", "1 to 2, the GPUs of a node of the pool a100-spot"),
    }


def on_pools(tmp_path: Path, pools: str) -> Any:
    (tmp_path / "pools.yaml").write_text(pools)
    settings = Settings(
        work_dir=tmp_path, scheduler="jobset", pools=tmp_path / "pools.yaml", store="s3://mcf/store"
    )  # fmt: skip
    return Scene(settings).http


@pytest.mark.parametrize(
    ("extra", "field", "possible"),
    [
        ({"nodes": 2, "pool": "spot"}, None, ""),
        ({"nodes": 2, "pool": ["spot", "l40s"]}, "placement.extra.pool", "or extra.mixed_gpus: true"),
        ({"nodes": 2, "pool": ["spot", "l40s"], "mixed_gpus": True}, None, ""),
        ({"nodes": 2, "pool": "cpu", "mixed_gpus": True}, "placement.extra.pool", "cannot train together"),
        ({"nodes": 2, "pool": "there"}, "placement.extra.pool", "a100, cpu, l40s, spot"),
        ({"nodes": 0}, "placement.extra.nodes", "greater than or equal to 1"),
        ({"nodes": "two"}, "placement.extra.nodes", "a valid integer"),
        ({}, "placement.extra.nodes", "a value"),
    ],
)
def test_extra_nodes_go_to_pools_that_go_together(
    tmp_path: Path, spec: dict[str, Any], extra: dict[str, Any], field: str | None, possible: str
) -> None:
    gpus = "{image: x, gpus: 8, gpu_type: A100}"
    pools = f"a100: {gpus}\nspot: {gpus}\nl40s: {{image: x, gpus: 8, gpu_type: L40S}}\ncpu: {{image: x}}\n"
    answer = on_pools(tmp_path, pools).post(
        "/v1/experiments?dry_run=true", json={**spec, "placement": {"pool": "a100", "extra": extra}}
    )
    if field is None:
        assert answer.status_code == 200, answer.text
    else:
        [problem] = answer.json()["problems"]
        assert problem["field"] == field
        assert possible in problem["possible"]


def test_max_nodes_follows_from_extra_nodes_or_says_the_same(tmp_path: Path, spec: dict[str, Any]) -> None:
    http = Scene(Settings(work_dir=tmp_path)).http
    for placement in {"extra": {"nodes": 1}}, {"max_nodes": 2, "extra": {"nodes": 1}}:
        answer = http.post("/v1/experiments?dry_run=true", json={**spec, "placement": placement})
        assert answer.status_code == 200, answer.text
    placement = {"min_nodes": 2, "max_nodes": 4, "extra": {"nodes": 3}}
    [problem] = http.post("/v1/experiments?dry_run=true", json={**spec, "placement": placement}).json()["problems"]
    assert (problem["field"], problem["asked"]) == ("placement.max_nodes", "4")
    assert problem["possible"].startswith("5, ")


def test_user_code_is_off_unless_the_operator_allows_it_and_the_service_never_executes_it(
    tmp_path: Path, spec: dict[str, Any]
) -> None:
    (tmp_path / "mask.py").write_text(
        f"open({str(tmp_path / 'executed')!r}, 'w')\ndef mask(noise, side, num_visible, landmarks): return noise\n"
    )
    mask = {"kind": "code", "code": str(tmp_path / "mask.py")}
    asked = {**spec, "base": {**spec["base"], "mask": mask}}
    refused = Scene(Settings(work_dir=tmp_path / "off")).http.post("/v1/experiments", json=asked)
    assert refused.status_code == 422
    [problem] = refused.json()["problems"]
    assert problem["field"] == "mask.code"
    assert "MCF_USER_CODE=true" in problem["possible"]
    assert "service.settings.userCode" in problem["possible"]
    allowed = Scene(Settings(work_dir=tmp_path / "on", user_code=True)).http
    assert allowed.post("/v1/experiments?dry_run=true", json=asked).status_code == 200
    assert allowed.post("/v1/experiments", json=asked).status_code == 201
    assert not (tmp_path / "executed").exists()
    (tmp_path / "mask.py").write_text("def mask(:\n")
    [problem] = allowed.post("/v1/experiments?dry_run=true", json=asked).json()["problems"]
    assert "mask.py, line 1: SyntaxError" in problem["possible"]


def test_the_gpus_decoder_is_refused_in_a_pool_without_gpus(tmp_path: Path, spec: dict[str, Any]) -> None:
    (tmp_path / "pools.yaml").write_text("cpu: {image: mcf-trainer}\na100: {image: mcf-trainer, gpus: 2}\n")
    settings = Settings(
        work_dir=tmp_path, scheduler="jobset", pools=tmp_path / "pools.yaml", store="s3://mcf/store"
    )  # fmt: skip
    http = Scene(settings).http
    asked = {**spec, "base": {**spec["base"], "data": {**spec["base"]["data"], "decoder": "nvjpeg"}}}
    answer = http.post("/v1/experiments?dry_run=true", json={**asked, "placement": {"pool": ["a100", "cpu"]}})
    assert answer.status_code == 422
    [problem] = answer.json()["problems"]
    assert problem["field"] == "data.decoder"
    assert problem["possible"] == "cpu in the pool cpu, whose nodes have no GPU"
    assert http.post("/v1/experiments?dry_run=true", json={**asked, "placement": {"pool": "a100"}}).is_success
