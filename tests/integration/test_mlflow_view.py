"""What the installed MLflow shows at first of an experiment that has ended, in a real browser."""

import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from mlflow import MlflowClient
from playwright.sync_api import Page, expect, sync_playwright

from service.publishing.view import view_link, view_tag
from service.tracking import Tracker
from tests.unit.service.test_compare import arm, table

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE = 60_000


@pytest.fixture
def page() -> Iterator[Page]:
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        yield browser.new_page(viewport={"width": 1600, "height": 900})
        browser.close()


def test_the_view_that_the_note_links_to_lists_the_runs_flat_and_the_best_first(mlflow_server: str, page: Page) -> None:
    comparison = table(arm("worse", 9.0, 9.2, 9.1, baseline=True), arm("good", 4.0, 4.11, 4.2))
    assert comparison.metric
    client, tracker = MlflowClient(mlflow_server), Tracker(mlflow_server, 20)
    tracking_id = client.create_experiment(uuid.uuid4().hex)
    parent = client.create_run(tracking_id, run_name="the-parent", tags={"mcf.kind": "experiment"}).info.run_id
    own = {"mcf.kind": "run", "mcf.experiment_id": comparison.experiment_id, "mlflow.parentRunId": parent}
    # A run of another experiment of the same name does not belong.
    others = {**own, "mcf.experiment_id": "e-other"}
    for name, value, tags in ("worse 0", 9.0, own), ("good 0", 4.0, own), ("worse 1", 9.2, own), ("alien", 1.0, others):
        run = client.create_run(tracking_id, run_name=name, tags=tags).info.run_id
        client.log_metric(run, "loss/total", 1 / value)
        client.log_metric(run, comparison.metric.name, value)
        client.log_param(run, "arm.arm", name.partition(" ")[0])
    tracker.tag_experiment(tracking_id, *view_tag(comparison, datetime.now(UTC)))
    page.goto(f"{mlflow_server}/{view_link(tracking_id, comparison)}")
    runs = page.locator(".ag-center-cols-container .ag-row a, .ag-pinned-left-cols-container .ag-row a")
    expect(runs).to_have_text(["good 0", "worse 0", "worse 1"], timeout=PATIENCE)
    expect(page.get_by_role("columnheader").filter(has_text="arm.arm").first).to_be_visible()
    # Under Views by its name, and its charts begin with the arms.
    expect(page.get_by_test_id("saved-views-trigger")).to_contain_text("best first")
    page.goto("about:blank")
    page.goto(f"{mlflow_server}/{view_link(tracking_id, comparison)}&compareRunsMode=CHART")
    area = page.get_by_test_id("experiment-view-compare-runs-chart-area")
    expect(area).to_have_text(re.compile(r"^Arms"), timeout=PATIENCE)
