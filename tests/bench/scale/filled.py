"""Experiments that have ended, as many runs as are asked for: submitted as people do, and finished by hand in SQL."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy import select, update

from service.app import create_app
from service.settings import Settings
from service.states import AttemptState, RunState
from service.tables import Attempt, Experiment, Run, Trial
from tests.integration.records import result, session

ARMS, SEEDS = 10, 100


def fill(spec: Callable[[str, int, int, int], dict[str, Any]], runs: int) -> None:
    """With the service's own settings, before it runs."""
    app = create_app(Settings())
    app.state.db.migrate()
    web = TestClient(app, base_url="http://127.0.0.1")  # without its lifespan: nothing is started
    for number in range(runs // (ARMS * SEEDS)):
        web.post("/v1/experiments", json=spec(f"ended-{number}", ARMS, SEEDS, 10)).raise_for_status()
    begun = datetime.now(UTC) - timedelta(days=1)
    with app.state.db.write() as found:
        rows = found.scalars(select(Run)).all()
        for run in rows:
            steps = int(run.spec["schedule"]["length"])
            made = session(1, 1, 0, steps, steps, begun.isoformat(), (begun + timedelta(hours=1)).isoformat())
            run.state, run.settled, run.admitted, run.step, run.total_steps = (
                RunState.SUCCEEDED,
                True,
                True,
                steps,
                steps,
            )
            run.result, run.ended_at, run.started_at = result(run.spec, steps), begun + timedelta(hours=1), begun
            run.sessions, run.losses, run.process_seconds = [made], made["losses"], 3600.0
            attempt = {"state": AttemptState.SUCCEEDED, "confirmed": True, "first_step": 0, "last_step": steps}
            found.add(Attempt(run_id=run.id, number=1, created_at=begun, ended_at=run.ended_at, reason="", **attempt))
        found.execute(update(Experiment).values(published=True, recorded=Experiment.revision))
        found.execute(update(Trial).values(published=True))
