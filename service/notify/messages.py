"""What is sent: JSON with all fields, or the text alone as Slack takes it. Bounded, however much there is to say."""

import json
from datetime import datetime
from typing import Any

from service.compare.headline import Headline
from service.notify.repository import MAX_REASON
from service.schemas.experiments import ExperimentSummary
from service.states import Event, Form
from service.tables import Delivery
from service.text import count, first_line, hours

MAX_ANSWER, MAX_TEXT = 700, 2500
TEST, EXAMPLE = "test", "e0000000000"
"""No experiment has this id: what a test tells of."""


def body(
    delivery: Delivery, experiment: ExperimentSummary, head: Headline | None, unit: str, form: Form, public_url: str
) -> str:  # fmt: skip
    """`head`: None where the comparison is gone; `unit`: what its hours are."""
    url = f"{public_url.rstrip('/')}/experiments/{experiment.id}" if public_url else None
    cost, reason = round(experiment.gpu_hours, 4), first_line(delivery.reason, MAX_REASON)
    counts = {state.value: number for state, number in experiment.counts.items()}
    lines = [
        what(delivery.event, experiment.name, experiment.state.value, counts),
        f"Reason: {reason}" if reason else "",
        (answer := first_line(_answer(head), MAX_ANSWER) if head else ""),
        f"Cost so far: {hours(cost)} {unit}." if delivery.event is not Event.ENDED else f"Cost: {hours(cost)} {unit}.",
    ]
    text = "\n".join(filter(None, lines))
    return _as(form, text, url, {
        "id": delivery.id, "event": delivery.event.value, "time": _time(delivery.created_at),
        "experiment": {
            "id": experiment.id, "name": experiment.name, "project": experiment.project,
            "state": experiment.state.value, "created_by": experiment.created_by, "url": url,
        },
        "counts": counts, "answer": answer, "cost": {"hours": cost, "unit": unit}, "reason": reason,
        "run_id": delivery.run_id, "text": text,
    })  # fmt: skip


def example(delivery_id: str, project: str | None, form: Form, public_url: str, now: datetime) -> str:
    """What a test sends: the same fields, of an experiment that does not exist."""
    text = "This is a test of mcf: this address will be told of experiments."
    return _as(form, text, public_url or None, {
        "id": delivery_id, "event": TEST, "time": _time(now),
        "experiment": {
            "id": EXAMPLE, "name": "test", "project": project or "default", "state": "succeeded", "created_by": "",
            "url": public_url or None,
        },
        "counts": {"succeeded": 1}, "answer": "", "cost": {"hours": 0.0, "unit": "process-hours"}, "reason": "",
        "run_id": None, "text": text,
    })  # fmt: skip


def what(event: Event, name: str, state: str, counts: dict[str, int]) -> str:
    """The first line."""
    runs = ", ".join(f"{number} {state}" for state, number in counts.items())
    if event is Event.ENDED:
        return f"{name} has ended: {state} ({runs})."
    if event is Event.FAILED:
        failed = counts.get("failed", 0)
        # By the time it is sent somebody may have begun to retry it.
        return f"{count(failed, 'run')} of {name} failed ({runs})." if failed else f"A run of {name} failed ({runs})."
    return f"{name} waits ({runs})."


def _answer(head: Headline) -> str:
    if head.best_arm is None:
        return f"{head.answer}: {head.why}"
    return f"{head.best_arm[0]} Is the difference real? {head.answer}: {head.why}"


def _as(form: Form, text: str, url: str | None, fields: dict[str, Any]) -> str:
    if form is Form.JSON:
        return json.dumps(fields)
    # These three mean something to Slack, everywhere in a text.
    plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")[:MAX_TEXT]
    return json.dumps({"text": f"{plain}\n<{url}|Open the page>" if url else plain})


def _time(at: datetime) -> str:
    return at.isoformat(timespec="seconds")
