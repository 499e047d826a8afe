"""What is written down of a run and what is seen of it: everything that the table of transitions decides by."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from service.launching.port import Job
from service.states import AttemptState, RunState
from trainer.contract.records import Outcome


class Action(StrEnum):
    """What to do outside of the database before the new facts are written; doing it twice is harmless."""

    SUBMIT = "submit"
    CANCEL = "cancel"


@dataclass(frozen=True)
class AttemptFacts:
    number: int
    pool: str = ""
    state: AttemptState = AttemptState.SUBMITTED
    confirmed: bool = False
    first_step: int = 0
    last_step: int = 0
    reason: str = ""
    """How it ended; while it lives, why it is being ended by us."""
    log_tail: str = ""

    @property
    def is_live(self) -> bool:
        return self.state.is_live


@dataclass(frozen=True)
class RunFacts:
    """What the database says of a run and its newest attempt."""

    state: RunState = RunState.QUEUED
    admitted: bool = False
    cancel_reason: str = ""
    pause_reason: str = ""
    pools: tuple[str, ...] = ()
    """Where it may go; () = anywhere."""
    not_before: datetime | None = None
    fruitless: int = 0
    step: int = 0
    reason: str = ""
    kind: str = ""
    waiting_reason: str = ""
    attempt: AttemptFacts | None = None


@dataclass(frozen=True)
class Observed:
    """What is seen of a run's newest attempt and directory."""

    job: Job = Job()
    step: int = 0
    sessions_of_attempt: int = 0
    outcome: Outcome | None = None
    has_result: bool = False
    log_tail: str = ""
    not_ready: str = ""
    """Why it cannot be launched now, such as MLflow being away; empty = it can."""
    trouble: str = ""
    """What somebody has to see to although the run goes on."""
    pool: str = ""
    """Where the next attempt would go."""
    sent: int = 0
    """Number of the newest attempt by the run's directory, where the next one would be opened."""
