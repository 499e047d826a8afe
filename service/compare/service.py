"""The comparison of one experiment."""

from datetime import UTC, datetime

from sqlalchemy.orm import Session

from service.compare import repository
from service.compare.schemas import Comparison
from service.compare.table import compare
from service.errors import NotFound


def comparison_of(session: Session, experiment_id: str, tracking_uri: str | None) -> Comparison:
    """Raises NotFound."""
    found = repository.load(session, experiment_id, tracking_uri)
    if found is None:
        raise NotFound(f"There is no experiment {experiment_id!r}. GET /v1/experiments lists those there are.")
    experiment, arms = found
    return compare(experiment.id, experiment.name, arms, datetime.now(UTC))
