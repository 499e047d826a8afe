"""The first tables."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None

JSON = sa.JSON().with_variant(JSONB(), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "experiments",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("spec", JSON, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("idempotency_key", sa.String(length=200), nullable=True),
        sa.Column("request_digest", sa.String(length=64), nullable=False),
        sa.Column("concurrency", sa.Integer(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("gpu_hours", sa.Double(), nullable=True),
        sa.Column("cancelled_at", TIME, nullable=True),
        sa.Column("cancel_reason", sa.String(), nullable=False),
        sa.Column("tracking_id", sa.String(), nullable=True),
        sa.Column("tracking_run_id", sa.String(), nullable=True),
        sa.Column("published", sa.Boolean(), nullable=False),
        sa.Column("lease_token", sa.String(length=32), nullable=True),
        sa.Column("lease_expires_at", TIME, nullable=True),
        sa.Column("next_check_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("idempotency_key"),
    )
    op.create_index("experiments_due", "experiments", ["published"])
    op.create_index("experiments_newest", "experiments", ["created_at", "id"])

    op.create_table(
        "arms",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("experiment_id", sa.String(length=16), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("levels", JSON, nullable=False),
        sa.Column("is_baseline", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_id"],
            ["experiments.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_arms_experiment_id", "arms", ["experiment_id"])

    op.create_table(
        "runs",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("spec", JSON, nullable=False),
        sa.Column("placement", JSON, nullable=False),
        sa.Column("home_id", sa.String(length=16), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "queued",
                "starting",
                "running",
                "interrupted",
                "succeeded",
                "failed",
                "cancelled",
                name="runstate",
                native_enum=False,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("admitted", sa.Boolean(), nullable=False),
        sa.Column("waiting_reason", sa.String(), nullable=False),
        sa.Column("cancel_reason", sa.String(), nullable=False),
        sa.Column("not_before", TIME, nullable=True),
        sa.Column("fruitless", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("total_steps", sa.Integer(), nullable=False),
        sa.Column("images_per_second", sa.Double(), nullable=True),
        sa.Column("losses", JSON, nullable=False),
        sa.Column("restarts", sa.Integer(), nullable=False),
        sa.Column("world_sizes", JSON, nullable=False),
        sa.Column("train_seconds", sa.Double(), nullable=False),
        sa.Column("process_seconds", sa.Double(), nullable=False),
        sa.Column("started_at", TIME, nullable=True),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("result", JSON, nullable=True),
        sa.Column("tracking_id", sa.String(), nullable=True),
        sa.Column("tracking_run_id", sa.String(), nullable=True),
        sa.Column("settled", sa.Boolean(), nullable=False),
        sa.Column("lease_token", sa.String(length=32), nullable=True),
        sa.Column("lease_expires_at", TIME, nullable=True),
        sa.Column("next_check_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["home_id"],
            ["experiments.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_runs_digest", "runs", ["digest"])
    op.create_index("ix_runs_home_id", "runs", ["home_id"])
    op.create_index("runs_due", "runs", ["settled", "next_check_at"])
    op.create_index("runs_state", "runs", ["state"])

    op.create_table(
        "attempts",
        sa.Column("run_id", sa.String(length=16), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "submitted",
                "running",
                "succeeded",
                "failed",
                "lost",
                "cancelled",
                name="attemptstate",
                native_enum=False,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("confirmed", sa.Boolean(), nullable=False),
        sa.Column("first_step", sa.Integer(), nullable=False),
        sa.Column("last_step", sa.Integer(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["runs.id"],
        ),
        sa.PrimaryKeyConstraint("run_id", "number"),
    )
    op.create_table(
        "trials",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("experiment_id", sa.String(length=16), nullable=False),
        sa.Column("arm_id", sa.Integer(), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(
            ["arm_id"],
            ["arms.id"],
        ),
        sa.ForeignKeyConstraint(
            ["experiment_id"],
            ["experiments.id"],
        ),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["runs.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("arm_id", "seed"),
    )
    op.create_index("ix_trials_arm_id", "trials", ["arm_id"])
    op.create_index("ix_trials_experiment_id", "trials", ["experiment_id"])
    op.create_index("ix_trials_run_id", "trials", ["run_id"])


def downgrade() -> None:
    op.drop_index("ix_trials_run_id", "trials")
    op.drop_index("ix_trials_experiment_id", "trials")
    op.drop_index("ix_trials_arm_id", "trials")

    op.drop_table("trials")
    op.drop_table("attempts")
    op.drop_index("runs_state", "runs")
    op.drop_index("runs_due", "runs")
    op.drop_index("ix_runs_home_id", "runs")
    op.drop_index("ix_runs_digest", "runs")

    op.drop_table("runs")
    op.drop_index("ix_arms_experiment_id", "arms")

    op.drop_table("arms")
    op.drop_index("experiments_newest", "experiments")
    op.drop_index("experiments_due", "experiments")

    op.drop_table("experiments")
