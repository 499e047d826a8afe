"""What MLflow means by an error, and what to do about one that does not pass by itself. Without MLflow's own import,
which takes seconds."""

import re
from typing import Any

# What a server that is there says when it is busy, or a proxy while it is not there.
PASSING = (408, 425, 429)
_DELETED = re.compile(r"The (run|experiment) (\w+) must be in the 'active' state. Current state is deleted")


def is_refusal(error: Exception) -> bool:
    """Whether MLflow has answered, and would answer the same again: no permission, or nothing that it can do."""
    status = getattr(error, "get_http_status_code", lambda: 500)()
    return 400 <= status < 500 and status not in PASSING


def deleted(client: Any, error: Exception) -> str:
    """What was deleted in MLflow, and how to get it back; empty where the error is another one.

    `client`: an MlflowClient. Raises what it raises.
    """
    if not (found := _DELETED.search(str(error))):
        return ""
    kind, id = found.groups()
    # Runs are deleted along with their experiment.
    experiment = client.get_experiment(client.get_run(id).info.experiment_id if kind == "run" else id)
    if experiment.lifecycle_stage == "deleted":
        return (
            f"The MLflow experiment {experiment.name!r} was deleted. Restore it with "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`, "
            "or cancel this experiment and submit it under another name."
        )
    return f"The MLflow run {id} was deleted. Restore it with `mlflow runs restore --run-id {id}`."
