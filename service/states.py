"""The words that database, API and client share: states of runs and attempts, scopes of tokens, events."""

from enum import StrEnum


class RunState(StrEnum):
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in FINAL


FINAL = (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED)


class AttemptState(StrEnum):
    SUBMITTED = "submitted"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"
    CANCELLED = "cancelled"

    @property
    def is_live(self) -> bool:
        return self in (AttemptState.SUBMITTED, AttemptState.RUNNING)


class RunAction(StrEnum):
    """What a person may do to runs."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"


class Scope(StrEnum):
    """What a token is good for; each includes the ones before."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"

    def includes(self, other: "Scope") -> bool:
        order = list(Scope)
        return order.index(other) <= order.index(self)


DEFAULT_PROJECT = "default"
"""Of experiments that nobody has given a project."""


class Event(StrEnum):
    """What webhooks are told of."""

    ENDED = "ended"
    FAILED = "failed"
    WAITING = "waiting"


class Form(StrEnum):
    """What a webhook is sent: all fields, or the text alone as Slack takes it."""

    JSON = "json"
    SLACK = "slack"
