"""The tables: experiment -> arms -> trials (arm x seed) -> run (shared by equal trials) -> attempts."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    DateTime,
    Dialect,
    Enum,
    ForeignKey,
    Index,
    String,
    TypeDecorator,
    UniqueConstraint,
    and_,
    case,
    false,
    literal,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from service.states import DEFAULT_PROJECT, AttemptState, Event, Form, RunState, Scope


class UtcDateTime(TypeDecorator[datetime]):
    """Times are aware and in UTC on both sides. SQLite forgets the zone, PostgreSQL gives the connection's."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def _state(kind: type[StrEnum]) -> Enum:
    return Enum(kind, native_enum=False, length=16, values_callable=lambda kind: [item.value for item in kind])


class Base(DeclarativeBase):
    type_annotation_map: ClassVar = {
        dict[str, Any]: Json,
        list[int]: Json,
        list[dict[str, Any]]: Json,
        datetime: UtcDateTime,
        RunState: _state(RunState),
        AttemptState: _state(AttemptState),
        Scope: _state(Scope),
        Event: _state(Event),
        Form: _state(Form),
        list[str]: Json,
    }


class Leased:
    """The right of one service to act on a row until a time; every write of a result names the token."""

    lease_token: Mapped[str | None] = mapped_column(String(32))
    lease_expires_at: Mapped[datetime | None]
    next_check_at: Mapped[datetime]


# Asked for at every tick, and mostly true of none: in the words of record.unrecorded, else no database uses the index.
_UNRECORDED = text("recorded != revision AND purged_at IS NULL")


class Experiment(Leased, Base):
    __tablename__ = "experiments"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(63))
    # In the database, too: while services are replaced, those of the version before still write experiments.
    project: Mapped[str] = mapped_column(String(63), default=DEFAULT_PROJECT, server_default=DEFAULT_PROJECT)
    spec: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    idempotency_key: Mapped[str | None] = mapped_column(String(200))
    request_digest: Mapped[str] = mapped_column(String(64))
    concurrency: Mapped[int]
    priority: Mapped[int]
    gpu_hours: Mapped[float | None]
    """Cap; None = none."""
    cancelled_at: Mapped[datetime | None]
    cancel_reason: Mapped[str] = mapped_column(default="")
    pause_reason: Mapped[str] = mapped_column(default="", server_default="")
    """Not empty = paused."""
    created_by: Mapped[str] = mapped_column(String(63), default="", server_default="")
    """Name of the token; empty for what an older release has written."""
    deleted_at: Mapped[datetime | None]
    """It is in no list any more, and can be restored until ..."""
    purge_at: Mapped[datetime | None]
    """... then, when the reconciler removes what only this experiment has used ..."""
    purged_at: Mapped[datetime | None]
    """... and leaves this row, which others refer to: what a run cost before it was theirs."""
    restored_at: Mapped[datetime | None]
    """A rule counts from then on again."""
    delete_reason: Mapped[str] = mapped_column(default="", server_default="")
    remove_objects: Mapped[bool] = mapped_column(default=True, server_default=true())
    """With it go the run directories ..."""
    remove_tracking: Mapped[bool] = mapped_column(default=False, server_default=false())
    """... and the runs in MLflow."""
    revision: Mapped[int] = mapped_column(default=1, server_default="1")
    """Of what the store keeps of it (service/record.py) ..."""
    recorded: Mapped[int] = mapped_column(default=0, server_default="0")
    """... and the one that the store has."""
    opened: Mapped[int] = mapped_column(default=0, server_default="0")
    """How often it went on after it had ended ..."""
    waits_since: Mapped[datetime | None]
    """... and since when runs of it wait for a place or a node, one or another (service/notify/waits.py)."""
    tracking_id: Mapped[str | None]
    """MLflow experiment."""
    tracking_run_id: Mapped[str | None]
    """MLflow parent run."""
    published: Mapped[bool] = mapped_column(default=False)
    """All runs have ended, and the comparison and the final state are in MLflow."""
    looks: Mapped[list[dict[str, Any]]] = mapped_column(default=list, server_default="[]")
    """Of seeds in rounds, after each round: when (`taken_at`), the seeds of each arm that had finished (`finished`, by
    the arm's id), and the ids of the arms that were given more (`on`)."""

    __table_args__ = (
        Index("experiments_newest", "created_at", "id"),
        Index("experiments_of_project", "project", "created_at", "id"),
        Index("experiments_due", "published"),
        Index("experiments_unrecorded", "created_at", "id", sqlite_where=_UNRECORDED, postgresql_where=_UNRECORDED),
        UniqueConstraint("project", "idempotency_key", name="experiments_key_of_project"),
    )

    @property
    def has_look_to_come(self) -> bool:
        """Its seeds come in rounds, and when the runs of this one have ended it is not over."""
        return isinstance(self.spec["seeds"], dict) and (not self.looks or bool(self.looks[-1]["on"]))


class Arm(Base):
    __tablename__ = "arms"

    id: Mapped[int] = mapped_column(primary_key=True)
    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"), index=True)
    position: Mapped[int]
    name: Mapped[str]
    levels: Mapped[dict[str, Any]]
    is_baseline: Mapped[bool]
    cancel_reason: Mapped[str] = mapped_column(default="", server_default="")
    """Not empty = seeds that the experiment gets later are none of this arm's."""
    sample: Mapped[dict[str, Any] | None] = mapped_column(Json)
    """Where seeds come in rounds: the spec of its run as it was submitted, to which a later round gives other seeds."""


class Run(Leased, Base):
    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), index=True)
    """Equal ones are one run (trainer/contract/identity.py); of the id only people read the digits."""
    pretraining: Mapped[str] = mapped_column(String(64), server_default="")
    """Digest of what decides the weights; empty where a service of the version before has written the row."""
    private_to: Mapped[str] = mapped_column(String(16), default="", server_default="")
    """The experiment that does not share it; empty = any may use it."""
    weights_of: Mapped[str | None] = mapped_column(String(16))
    """A run of the same pretraining that went ahead: this one starts from its last checkpoint."""
    spec: Mapped[dict[str, Any]]
    placement: Mapped[dict[str, Any]]
    home_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"), index=True)
    """The experiment that has it trained: placement, MLflow experiment and, from then on, cost are that one's."""
    created_at: Mapped[datetime]

    state: Mapped[RunState] = mapped_column(default=RunState.QUEUED)
    admitted: Mapped[bool] = mapped_column(default=False)
    """Holds one of the places that concurrency gives out."""
    waiting_reason: Mapped[str] = mapped_column(default="")
    waits_since: Mapped[datetime | None]
    """For a place or a node; within a minute."""
    nodes_wait: Mapped[str] = mapped_column(default="")
    """How many nodes it trains without, and for what they wait."""
    cancel_reason: Mapped[str] = mapped_column(default="")
    """Not empty = asked to stop: no experiment wants it any more (service/experiments/wishes.py)."""
    pause_reason: Mapped[str] = mapped_column(default="", server_default="")
    """Not empty = asked to wait: of the experiments that have not cancelled it, each has paused it."""
    not_before: Mapped[datetime | None]
    fruitless: Mapped[int] = mapped_column(default=0)
    """Attempts in a row that ended without a new step."""
    reason: Mapped[str] = mapped_column(default="")
    kind: Mapped[str] = mapped_column(default="")

    stage: Mapped[str] = mapped_column(default="")
    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int]
    images_per_second: Mapped[float | None]
    """Now."""
    mean_images_per_second: Mapped[float | None]
    """Of all its training, as the shares; None before that has been measured, and where it trains nothing."""
    waiting_share: Mapped[float | None]
    peak_share: Mapped[float | None]
    compile_seconds: Mapped[float] = mapped_column(default=0.0, server_default="0")
    losses: Mapped[dict[str, Any]] = mapped_column(default=dict)
    restarts: Mapped[int] = mapped_column(default=0)
    world_sizes: Mapped[list[int]] = mapped_column(default=list)
    sessions: Mapped[list[dict[str, Any]]] = mapped_column(default=list)
    """Every stretch of training: attempt, world size, steps, times."""
    train_seconds: Mapped[float] = mapped_column(default=0.0)
    process_seconds: Mapped[float] = mapped_column(default=0.0)
    pool_seconds: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Of these, those whose node pool is known."""
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    result: Mapped[dict[str, Any] | None] = mapped_column(Json)
    readings: Mapped[dict[str, Any] | None] = mapped_column(Json)
    """What was measured while it trained."""
    last_reading: Mapped[int | None]
    """Step of the newest of them."""

    tracking_id: Mapped[str | None]
    tracking_run_id: Mapped[str | None]
    checkpoints_kept: Mapped[int | None]
    """So many at most are left since it has succeeded; None = all that it has left."""
    settled: Mapped[bool] = mapped_column(default=False)
    """Ended, and MLflow says so too: nothing left to do."""

    __table_args__ = (
        Index("runs_due", "settled", "next_check_at"),
        Index("runs_state", "state"),
        Index("runs_waiting", "waits_since"),
        Index("runs_newest", "created_at", "id"),
        Index("runs_of_pretraining", "pretraining", "private_to", "state"),
    )


class Trial(Base):
    __tablename__ = "trials"

    id: Mapped[int] = mapped_column(primary_key=True)
    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"), index=True)
    arm_id: Mapped[int] = mapped_column(ForeignKey("arms.id"), index=True)
    seed: Mapped[int]
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), index=True)
    cancel_reason: Mapped[str] = mapped_column(default="", server_default="")
    """Not empty = this experiment no longer wants the run; the run goes on where another one does."""
    pause_reason: Mapped[str] = mapped_column(default="", server_default="")
    published: Mapped[bool] = mapped_column(default=False, server_default=false())
    """MLflow has all that the service knows of its run."""

    __table_args__ = (UniqueConstraint("arm_id", "seed"),)

    def state_of(self, run: Run) -> RunState:
        """As its experiment sees it: what was cancelled counts again when its run has come to a result."""
        return RunState.CANCELLED if self.cancel_reason and run.state is not RunState.SUCCEEDED else run.state


_IS_CANCELLED = and_(Trial.cancel_reason != "", Run.state != RunState.SUCCEEDED)
TRIAL_STATE = case((_IS_CANCELLED, literal(RunState.CANCELLED, Run.state.type)), else_=Run.state)
"""`Trial.state_of` in SQL, for a trial joined with its run."""
TRIAL_REASON = case((_IS_CANCELLED, Trial.cancel_reason), else_=Run.reason)


class Attempt(Base):
    __tablename__ = "attempts"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[AttemptState] = mapped_column(default=AttemptState.SUBMITTED)
    confirmed: Mapped[bool] = mapped_column(default=False)
    """Seen at the scheduler; before that, nobody can know whether it was submitted, so it is submitted again."""
    first_step: Mapped[int]
    last_step: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    reason: Mapped[str] = mapped_column(default="")
    """How it ended; while it lives, why it is being ended by us."""
    pool: Mapped[str] = mapped_column(default="")
    """Node pool it was sent to."""
    log_tail: Mapped[str] = mapped_column(default="")
    """What its nodes printed last, for when their logs are gone."""

    @property
    def name(self) -> str:
        return f"{self.run_id}-{self.number}"


class Charge(Base):
    """What a run cost while an experiment was its home: the hours before were another experiment's."""

    __tablename__ = "charges"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"), primary_key=True, index=True)
    process_seconds: Mapped[float]


class PoolCharge(Base):
    """The part of a charge whose node pool is known."""

    __tablename__ = "pool_charges"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"), primary_key=True, index=True)
    pool: Mapped[str] = mapped_column(primary_key=True)
    process_seconds: Mapped[float]


class Doomed(Leased, Base):
    """A run that nobody uses any more and that is in no other table: what is left of it outside is removed."""

    __tablename__ = "doomed"

    run_id: Mapped[str] = mapped_column(String(16), primary_key=True)
    """No new run gets this id, nor its directory, before that is empty."""
    remove_objects: Mapped[bool]
    tracking_run_id: Mapped[str | None]
    """To be deleted in MLflow; None = it stays."""


class Project(Base):
    """What an admin has set for a project; one without a row has no limits and keeps everything."""

    __tablename__ = "projects"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    max_places: Mapped[int | None]
    """Runs in flight at once."""
    max_queued: Mapped[int | None]
    """Runs that wait; more are refused with 429."""
    max_priority: Mapped[int | None]
    delete_after_days: Mapped[float | None]
    """Experiments are deleted so long after their last run has ended."""
    keep_checkpoints: Mapped[int | None]
    """Of a run that has succeeded; None = as everywhere."""


class Token(Base):
    """What a person or a program shows to be let in; the secret itself is nowhere."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(63))
    digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the secret, in hex."""
    scope: Mapped[Scope]
    project: Mapped[str | None] = mapped_column(String(63))
    """None = every project."""
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(63), default="", server_default="")
    """Name of the token that it was made with."""
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """Within a minute: not every request writes."""


class AuditEntry(Base):
    """Who asked for what and when; written before it is done, and completed with the answer. Nothing deletes any.

    What the service does by itself (audit.by_service) has neither token nor address.
    """

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    token_id: Mapped[str] = mapped_column(String(16))
    """Empty = MCF_TOKEN, or nobody is asked for one."""
    name: Mapped[str] = mapped_column(String(63))
    """Of the token; of what the service does by itself the rule."""
    project: Mapped[str | None] = mapped_column(String(63))
    """Of the token; None = every project. Of what the service does by itself, the experiment's."""
    action: Mapped[str] = mapped_column(String(63))
    """Such as `experiments.cancel`."""
    object: Mapped[str] = mapped_column(String(200))
    """Id of what it was done to."""
    asked: Mapped[str] = mapped_column(String(1000))
    """What of it, as the address had it: the query."""
    address: Mapped[str] = mapped_column(String(200))
    status: Mapped[int | None]
    """Of the answer, as HTTP has it; None = the service was stopped before it could answer."""

    __table_args__ = (Index("audit_of_project", "project", "id"),)


class Webhook(Base):
    """An address that is told of what happens to experiments."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    project: Mapped[str | None] = mapped_column(String(63))
    """None = every project."""
    url: Mapped[str] = mapped_column(String(2000))
    """Slack's are secrets themselves: lists and logs show the host alone."""
    secret: Mapped[str] = mapped_column(String(80))
    """As it is, not its digest: what is sent is signed with it."""
    events: Mapped[list[str]]
    waits_longer_than_minutes: Mapped[float]
    form: Mapped[Form]
    created_by: Mapped[str] = mapped_column(String(63))
    """Name of the token that it was made with."""
    created_at: Mapped[datetime]
    disabled_reason: Mapped[str] = mapped_column(default="", server_default="")
    """Not empty = nothing is sent to it any more."""


class Delivery(Leased, Base):
    """What a webhook is told, once; sent until it is taken or given up."""

    __tablename__ = "deliveries"

    id: Mapped[str] = mapped_column(String(24), primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id"))
    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"))
    event: Mapped[Event]
    occurrence: Mapped[str] = mapped_column(String(40))
    run_id: Mapped[str | None] = mapped_column(String(16))
    """The run that has failed or waits."""
    reason: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime]
    body: Mapped[str | None]
    """None = not sent yet."""
    attempts: Mapped[int] = mapped_column(default=0)
    done_at: Mapped[datetime | None]
    """Taken, or given up: then `last_error` says why."""
    last_status: Mapped[int | None]
    """What the receiver has answered, as HTTP has it."""
    last_error: Mapped[str] = mapped_column(default="")

    __table_args__ = (
        UniqueConstraint("webhook_id", "experiment_id", "event", "occurrence", name="deliveries_once"),
        Index("deliveries_due", "done_at", "next_check_at"),
    )
