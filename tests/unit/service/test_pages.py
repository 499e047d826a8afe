"""The pages without a browser: what they say, what they cost, and whom they obey."""

import io
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pydantic import SecretStr
from sqlalchemy import select, update
from typer.testing import CliRunner

from service import audit
from service.api.auth import COOKIE
from service.cli.main import app as mcf
from service.compare.headline import headline
from service.compare.table import ArmTrials, TrialRow, compare
from service.errors import Unavailable
from service.experiments.curves import over_seeds
from service.experiments.repository import TrackedTrial
from service.settings import Settings
from service.states import RunState, Scope
from service.tables import AuditEntry, Charge, Experiment, Run
from tests.unit.service.bench import counting_statements, result
from tests.unit.service.test_api import Scene
from trainer.contract.records import Metric


@pytest.fixture
def scene(settings: Settings) -> Iterator[Scene]:
    made = Scene(settings)
    yield made
    made.db.engine.dispose()


# ---------------------------------------------------------------- the headline


def arm(name: str, values: list[float | None], *, is_baseline: bool = False) -> ArmTrials:
    trials = []
    for seed, value in enumerate(values):
        probe = Metric(name="probe/landmark_nme", value=value or 0.0, unit="%", higher_is_better=False)
        found = result(None, probe=probe) if value is not None else None
        state = RunState.RUNNING if value is None else RunState.SUCCEEDED
        trials.append(TrialRow(seed, f"r{seed}", state, "", found, 3600.0, 0, None))
    return ArmTrials(name, {"mask_ratio": name}, is_baseline, trials)


@pytest.mark.parametrize(
    ("others", "best", "answer", "why"),
    [
        (
            [[8.0, 8.1, 7.8, 8.0]],
            "arm0",
            "Yes",
            "by 2.03 percentage points, more than chance would explain (p = 4.1e-06 after correction",
        ),
        ([[9.8, 10.2, 9.7, 10.2]], "arm0", "Not shown", "would show it in 4 of 5 experiments"),
        ([[8.0, None, None, None]], "arm0", "Too early to say", "this arm has 1"),
        ([[12.0, 12.1, 11.8, 12.1]], "base", "Yes", "every other arm loses to it"),
        ([[12.0, 12.1, 11.8, 12.1], [10.1, 10.0, 10.1, 10.0]], "base", "For some arms", "1 of the 2 other arms"),
        ([[None] * 4], "base", "Too early to say", "no other arm has them"),
        ([[11.0, 11.1, 10.9, 11.0]], "base", "No verdict", "the same at every seed"),
    ],
)
def test_the_headline_says_what_the_comparison_says(
    others: list[list[float | None]], best: str, answer: str, why: str
) -> None:
    arms = [arm("base", [10.0, 10.1, 9.9, 10.0], is_baseline=True)]
    arms += [arm(f"arm{number}", values) for number, values in enumerate(others)]
    found = headline(compare("e1", "x", arms, datetime.now(UTC)))
    assert found.best
    assert (found.best.name, found.answer) == (best, answer)
    assert why in found.why


def test_an_arm_that_is_best_only_where_the_baseline_has_no_run_does_not_lead_it() -> None:
    base = arm("base", [11.0, 8.0, 8.1, 7.9], is_baseline=True)
    for values in [None, 8.5, 8.4, 8.55], [None, 8.0, 8.1, 7.9]:
        found = headline(compare("e1", "x", [base, arm("arm0", values)], datetime.now(UTC)))
        assert found.best
        assert (found.best.name, found.answer) == ("arm0", "Not shown")
        assert "does not lead the baseline (base) over the 3 seeds that both have" in found.why


def test_without_a_finished_run_the_headline_names_no_arm() -> None:
    found = headline(compare("e1", "x", [arm("base", [None], is_baseline=True)], datetime.now(UTC)))
    assert found.best is None
    assert found.why == "No run has finished yet."


# ---------------------------------------------------------------- curves


def test_a_curve_is_the_mean_of_the_seeds_that_have_got_so_far() -> None:
    trial = TrackedTrial(0, "arm", True, 0, "r0", RunState.RUNNING, 3, "m0", None)
    found = over_seeds(
        trial.arm, trial.is_baseline, [[(1, 4.0), (3, 2.0)], [(1, 2.0), (2, math.nan), (3, 1.0), (5, 0.5)]]
    )
    assert found.steps == [1, 3, 5]
    assert found.mean == [3.0, 1.5, 0.5]
    assert (found.low, found.high, found.seeds) == ([2.0, 1.0, 0.5], [4.0, 2.0, 0.5], [2, 2, 1])


# ---------------------------------------------------------------- cost


def test_500_runs_cost_no_more_statements_than_two(scene: Scene, spec: dict[str, Any]) -> None:
    ratios = [round(0.3 + 0.005 * n, 4) for n in range(100)]
    made = {}
    for name, changes in ("small", {"factors": {}, "seeds": 2}), ("large", {"factors": {"mask_ratio": ratios}}):
        body = spec | {"seeds": 5, "name": name} | changes
        made[name] = scene.http.post("/v1/experiments", json=body).json()["id"]
    found = result(None).model_dump(mode="json")
    with scene.db.write() as session:
        session.execute(update(Run).values(state=RunState.SUCCEEDED, step=10, result=found))
        session.execute(update(Run).where(Run.id.endswith("0")).values(state=RunState.QUEUED, step=5, result=None))
    for path in "", "/curves", "/pictures", "/cancel", "/extend":
        counts = {}
        for name, experiment_id in made.items():
            with counting_statements(scene.db.engine) as statements:
                answer = scene.http.get(f"/experiments/{experiment_id}{path}")
            assert answer.status_code == 200
            counts[name] = len(statements)
        assert counts["small"] == counts["large"] <= 16, path
    for path in "/", "/queue":
        with counting_statements(scene.db.engine) as statements:
            assert scene.http.get(path).status_code == 200
        assert len(statements) <= 11, path


def test_the_list_counts_runs_and_arms(scene: Scene, spec: dict[str, Any]) -> None:
    scene.http.post("/v1/experiments", json=spec | {"factors": {"mask_ratio": [0.5, 0.75]}, "seeds": 3})
    scene.http.post("/v1/experiments", json=spec | {"name": "one", "factors": {}, "seeds": 1})
    page = scene.http.get("/").text
    assert "<td>6 runs of 2 arms<" in page
    assert "<td>1 run of 1 arm<" in page


def test_the_cost_to_the_end_is_at_the_speed_so_far(scene: Scene, spec: dict[str, Any]) -> None:
    body = scene.http.post("/v1/experiments", json=spec).json()
    assert body["gpu_hours_left"] is None
    with scene.db.write() as session:
        run = session.scalars(select(Run).order_by(Run.id)).first()
        run.state, run.step, run.process_seconds = RunState.RUNNING, 5, 3600.0
        session.add(Charge(run_id=run.id, experiment_id=run.home_id, process_seconds=3600.0))
    found = scene.http.get(f"/v1/experiments/{body['id']}").json()
    # 5 of 10 steps took an hour: 5 more here, 10 in each of the three others.
    assert (found["gpu_hours"], found["gpu_hours_left"]) == (1.0, 7.0)
    scene.finish()
    assert scene.http.get(f"/v1/experiments/{body['id']}").json()["gpu_hours_left"] == 0


def test_a_runs_page_and_the_api_say_how_fast_it_trained_and_what_it_waited_for(
    scene: Scene, spec: dict[str, Any]
) -> None:
    experiment = scene.http.post("/v1/experiments", json=spec | {"factors": {}, "seeds": 1}).json()
    id = experiment["arms"][0]["trials"][0]["run_id"]
    bare = scene.http.get(f"/runs/{id}").text
    measured = {
        "mean_images_per_second": 2810.4, "waiting_share": 0.034, "peak_share": 0.497, "compile_seconds": 95.0,
    }  # fmt: skip
    with scene.db.write() as session:
        waits = "2 more nodes wait: <quota>"
        session.execute(update(Run).values(images_per_second=2790.0, nodes_wait=waits, **measured))
    page, run = scene.http.get(f"/runs/{id}").text, scene.http.get(f"/v1/runs/{id}").json()
    assert {name: run[name] for name in measured} == measured
    assert run["nodes_wait"] == waits
    assert '<p class="note">2 more nodes wait: &lt;quota&gt;</p>' in page
    shown = {
        "images/s": "2,790 now, 2,810 on average", "share of peak": "50 %", "waiting for images": "3 % of the time",
        "compiling": "2 min",
    }  # fmt: skip
    for name, value in shown.items():
        assert f"<dt>{name}</dt><dd>{value}</dd>" in page
        assert f"<dt>{name}</dt>" not in bare
    [arm] = scene.http.get(f"/v1/experiments/{experiment['id']}/comparison").json()["arms"]
    assert (arm["images_per_second"], arm["peak_share"], arm["waiting_share"]) == (2810.4, 0.497, 0.034)
    assert "share of peak" in scene.http.get(f"/experiments/{experiment['id']}").text


# ---------------------------------------------------------------- the queue


def test_the_queue_is_in_the_order_in_which_places_are_given_out(scene: Scene, spec: dict[str, Any]) -> None:
    low = scene.http.post("/v1/experiments", json=spec | {"name": "low"}).json()["id"]
    urgent = spec | {"name": "urgent", "share": False, "placement": {"priority": 5}, "seeds": 1}
    high = scene.http.post("/v1/experiments?project=other", json=urgent).json()["id"]
    with scene.db.write() as session:
        first = session.scalars(select(Run).where(Run.home_id == low).order_by(Run.id)).first()
        first.admitted, first.state = True, RunState.RUNNING
    queue = scene.http.get("/v1/queue").json()
    assert [run["run_id"] for run in queue["in_flight"]] == [first.id]
    assert [run["experiment_id"] for run in queue["waiting"]] == [high, high, low, low, low]
    assert [run["position"] for run in queue["waiting"]] == [1, 2, 3, 4, 5]
    # Who sees one project only still learns how many are before them.
    mine = scene.http.get("/v1/queue?project=default").json()
    assert [run["position"] for run in mine["waiting"]] == [3, 4, 5]


# ---------------------------------------------------------------- actions


def test_forms_obey_whom_the_api_obeys_and_no_other_site(tmp_path: Any, spec: dict[str, Any]) -> None:
    scene = Scene(Settings(work_dir=tmp_path, token=SecretStr("first")))
    admin = {"Authorization": "Bearer first"}
    made = {
        scope: scene.http.post("/v1/tokens", json={"name": scope, "scope": scope}, headers=admin) for scope in Scope
    }
    secrets = {scope: answer.json()["secret"] for scope, answer in made.items()}
    experiment_id = scene.http.post("/v1/experiments", json=spec, headers=admin).json()["id"]
    page, ours = f"/experiments/{experiment_id}", {"Origin": "http://testserver"}

    def browser(scope: Scope) -> TestClient:
        return TestClient(scene.app, cookies={COOKIE: secrets[scope]}, follow_redirects=False)

    reader, submitter = browser(Scope.READ), browser(Scope.SUBMIT)
    assert "/cancel" not in reader.get(page).text
    assert reader.get(f"{page}/cancel").status_code == 403
    assert reader.post(f"{page}/cancel", headers=ours).status_code == 403
    assert f'href="{page}/cancel"' in submitter.get(page).text
    for origin in "null", "https://elsewhere.org":
        assert submitter.post(f"{page}/cancel", headers={"Origin": origin}).status_code == 403
    with scene.db.read() as session:
        assert session.get(Experiment, experiment_id).cancelled_at is None
    assert 'min="3"' in submitter.get(f"{page}/extend").text
    assert submitter.post(f"{page}/extend", headers=ours, data={"seeds": "many"}).status_code == 422
    answer = submitter.post(f"{page}/extend", headers=ours, data={"seeds": "3"})
    assert (answer.status_code, answer.headers["location"]) == (303, page)
    assert scene.http.get(f"/v1/experiments/{experiment_id}", headers=admin).json()["num_runs"] == 6
    answer = submitter.post(f"{page}/cancel", headers=ours)
    assert (answer.status_code, answer.headers["location"]) == (303, page)
    with scene.db.read() as session:
        assert session.get(Experiment, experiment_id).cancelled_at
    assert submitter.post(f"{page}/retry", headers=ours).status_code == 409


def test_a_page_that_is_open_downloads_a_picture_once(scene: Scene, spec: dict[str, Any]) -> None:
    made = scene.http.post("/v1/experiments", json=spec).json()["id"]
    with scene.db.write() as session:
        session.execute(update(Run).values(tracking_run_id="t"))
        run = session.scalars(select(Run.id)).first()
    downloads: list[str] = []

    class Pictures:
        def pictures(self, run_id: str) -> dict[int, str]:
            return {2: "pictures/step-2.png", 10: "pictures/step-10.png"}

        def picture(self, run_id: str, path: str) -> bytes:
            downloads.append(path)
            image = io.BytesIO()
            Image.new("RGB", (34, 22)).save(image, "PNG")
            return image.getvalue()

    scene.http.app.state.tracker = Pictures()  # type: ignore[attr-defined]
    looks = [scene.http.get(f"/runs/{run}/picture").text for _ in range(3)]
    assert all(f'src="/runs/{run}/picture.png?step=10"' in text for text in looks), made
    assert downloads == []
    answer = scene.http.get(f"/runs/{run}/picture.png?step=10")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "private, max-age=3600")
    assert downloads == ["pictures/step-10.png"]


def test_a_part_that_is_waited_for_says_why_it_is_not_there(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """htmx swaps no refusal: the page would wait for ever, or show what was true of another text."""

    def away(*args: Any) -> None:
        raise Unavailable("The store cannot be read: it is away")

    monkeypatch.setattr("service.pages.admin.retention.check_store", away)
    found = scene.http.get("/store/found", headers={"HX-Request": "true"})
    assert (found.status_code, "it is away" in found.text) == (200, True)
    monkeypatch.setattr("service.pages.submit._resolved", away)
    found = scene.http.post("/new/check", data={"text": "name: x"}, headers={"HX-Request": "true"})
    assert (found.status_code, "it is away" in found.text) == (200, True)


def test_what_is_still_being_done_is_not_said_to_have_been_stopped(scene: Scene) -> None:
    entry = {"token_id": "", "name": "ann", "action": "webhooks.test", "object": "", "asked": "", "address": ""}
    number = audit.begin(scene.db, AuditEntry(**entry))
    page = scene.http.get("/audit").text
    assert ("none yet" in page, "was stopped" in page) == (True, False)
    with scene.db.write() as session:
        session.get_one(AuditEntry, number).at -= audit.PATIENCE
    page = scene.http.get("/audit").text
    assert ("none yet" in page, "was stopped" in page) == (False, True)


def test_the_audit_is_read_from_any_number_on(scene: Scene) -> None:
    for before, status in (2**31 - 1, 200), (2**63, 422), (10**30, 422):
        assert scene.http.get(f"/audit?before={before}").status_code == status


# ---------------------------------------------------------------- what is done on the pages


def test_some_runs_are_cancelled_what_goes_on_is_changed_and_the_whole_is_deleted_and_restored(
    scene: Scene, spec: dict[str, Any]
) -> None:
    experiment = scene.http.post("/v1/experiments", json=spec).json()
    here, [first, second] = f"/experiments/{experiment['id']}", experiment["arms"]

    def sends(address: str, **fields: Any) -> Any:
        return scene.http.post(f"{here}/{address}", data=fields, follow_redirects=False)

    def states() -> list[str]:
        arms = scene.http.get(f"/v1{here}").json()["arms"]
        return [trial["state"] for arm in arms for trial in arm["trials"]]

    page = scene.http.get(f"{here}/manage").text
    assert f'name="arm" value="{second["name"]}"' in page
    run = first["trials"][0]["run_id"]
    assert sends("manage", arm=second["name"], run=run, action="cancel").status_code == 303
    assert states() == ["cancelled", "queued", "cancelled", "cancelled"]
    for fields in {"action": "cancel"}, {"arm": "none such", "action": "cancel"}, {"run": run, "action": "explode"}:
        assert sends("manage", **fields).status_code == 422
    assert sends("change", priority="4", concurrency="2", gpu_hours="").status_code == 303
    shown = scene.http.get(f"/v1{here}").json()
    assert (shown["priority"], shown["concurrency"], shown["gpu_hours_cap"]) == (4, 2, None)
    assert "Go back and correct" in sends("change", priority="high").text

    scene.finish()
    with scene.db.write() as session:
        session.execute(update(Run).values(settled=True))
    assert "4</b> of its runs are used by nobody else" in scene.http.get(f"{here}/delete").text
    assert sends("delete").headers["Location"] == "/deleted"
    assert experiment["id"] not in scene.http.get("/").text
    assert experiment["id"] in scene.http.get("/deleted").text
    assert "it can be restored until" in scene.http.get(here).text
    for _ in range(2):
        assert sends("restore").headers["Location"] == here
        assert scene.http.post(f"/v1{here}/restore").json()["deleted_at"] is None, (
            "it is not deleted: a wish that is met"
        )
    assert experiment["id"] in scene.http.get("/").text


def test_the_page_of_the_store_says_what_several_free_and_deletes_them_with_an_entry_for_each(
    scene: Scene, spec: dict[str, Any]
) -> None:
    one, other = (
        scene.http.post("/v1/experiments", json=spec | {"name": name}).json()["id"] for name in ("one", "other")
    )
    scene.finish()
    with scene.db.write() as session:
        session.execute(update(Run).values(settled=True))
    shown = scene.http.get("/store/found").text
    for id in one, other:
        assert f'form="together" name="id" value="{id}"' in shown
    asked = f"/delete?id={one}&id={other}"
    assert "nothing is freed now" in scene.http.get(f"/delete?id={one}").text
    page = scene.http.get(asked).text
    assert "<b>4</b> runs are used by nobody but them" in page
    assert f'action="{asked.replace("&", "&amp;")}"' in page
    assert len(scene.http.get(f"/v1/deletion?id={one}&id={other}").json()["removed_runs"]) == 4
    assert scene.http.post("/delete?id=e0000000000&id=" + one).status_code == 404
    assert scene.http.post(asked, data={"keep_objects": "on"}, follow_redirects=False).headers["Location"] == "/deleted"
    gone = scene.http.get("/deleted").text
    assert one in gone
    assert other in gone
    entries = [
        entry for entry in scene.http.get("/v1/audit").json()["entries"] if entry["action"] != "experiments.create"
    ]
    assert [(entry["action"], entry["object"], entry["status"]) for entry in reversed(entries)] == [
        ("experiments.delete", "e0000000000", 404), ("experiments.delete", one, 404),
        ("experiments.delete", one, 303), ("experiments.delete", other, 303),
    ]  # fmt: skip
    assert entries[0]["asked"] == "keep_objects"


def test_the_command_says_what_several_free_together_and_deletes_each(
    scene: Scene, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(connection: Any, method: str, path: str, **options: Any) -> Any:
        return scene.http.request(method, path, **{name: options[name] for name in {"params", "json"} & set(options)})

    def run(*words: str) -> str:
        done = CliRunner().invoke(mcf, words)
        assert done.exit_code == 0, done.output
        return done.stdout

    monkeypatch.setenv("MCF_URL", "http://localhost")
    monkeypatch.setattr("service.connection.ServiceConnection.call", call)
    one, other = (
        scene.http.post("/v1/experiments", json=spec | {"name": name}).json()["id"] for name in ("one", "other")
    )
    scene.finish()
    with scene.db.write() as session:
        session.execute(update(Run).values(settled=True))
    assert "0 runs would be removed" in run("delete", "one", "--dry-run")
    dry = run("delete", "one", other, "one", "--dry-run")
    assert "Together: 4 runs would be removed" in dry
    assert dry.count(one) == 1
    assert "Nothing was deleted." in dry
    assert "Together: 4 runs will be removed" in run("delete", "one", "other")
    assert {each["id"] for each in scene.http.get("/v1/experiments?deleted=true").json()["experiments"]} == {one, other}
    assert f"one ({one}) is back" in run("restore", one)
    assert f"one ({one}) is not deleted" in run("restore", one)


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/nope", 404, "There is no page &#39;/nope&#39;"),
        ("/experiments", 404, "There is no page"),
        ("/new/file", 405, "a form sends to it"),
        ("/?cursor=zz", 422, "cursor=&#39;zz&#39;"),
        ("/audit?before=abc", 422, "before=&#39;abc&#39;"),
        ("/runs/r0", 404, "There is no run"),
    ],
)
def test_a_wrong_address_is_a_page_with_links_for_people_and_json_for_programs(
    scene: Scene, path: str, status: int, told: str
) -> None:
    answer = scene.http.get(path, headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert told in answer.text
    assert '<a href="/queue">' in answer.text
    for known in "/v1/nope", "/v1/experiments?cursor=zz", "/v1/runs/r0":
        assert "error" in scene.http.get(known, headers={"Accept": "text/html"}).json()
    if status != 404 or "run" not in told:
        assert "error" in scene.http.get(path).json()
