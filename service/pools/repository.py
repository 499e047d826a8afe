"""The SQL of pools."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.tables import Attempt, AttemptState


def attempts_by_pool(session: Session) -> dict[tuple[str, AttemptState], int]:
    """Attempts that live, by pool and state."""
    live = [state for state in AttemptState if state.is_live]
    rows = session.execute(
        select(Attempt.pool, Attempt.state, func.count())
        .where(Attempt.state.in_(live))
        .group_by(Attempt.pool, Attempt.state)
    )
    return {(pool, state): count for pool, state, count in rows}
