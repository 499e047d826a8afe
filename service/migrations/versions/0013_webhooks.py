"""Webhooks, what they are told, and since when runs wait."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"

AT = sa.DateTime(timezone=True)
JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.add_column("experiments", sa.Column("opened", sa.Integer, nullable=False, server_default="0"))
    for name in "experiments", "runs":
        op.add_column(name, sa.Column("waits_since", AT, nullable=True))
    op.create_index("runs_waiting", "runs", ["waits_since"])
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("project", sa.String(63)),
        sa.Column("url", sa.String(2000), nullable=False),
        sa.Column("secret", sa.String(80), nullable=False),
        sa.Column("events", JSON, nullable=False),
        sa.Column("waits_longer_than_minutes", sa.Double, nullable=False),
        sa.Column("form", sa.String(16), nullable=False),
        sa.Column("created_by", sa.String(63), nullable=False),
        sa.Column("created_at", AT, nullable=False),
        sa.Column("disabled_reason", sa.String, nullable=False, server_default=""),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(24), primary_key=True),
        sa.Column("webhook_id", sa.String(16), sa.ForeignKey("webhooks.id"), nullable=False),
        sa.Column("experiment_id", sa.String(16), sa.ForeignKey("experiments.id"), nullable=False),
        sa.Column("event", sa.String(16), nullable=False),
        sa.Column("occurrence", sa.String(40), nullable=False),
        sa.Column("run_id", sa.String(16)),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("created_at", AT, nullable=False),
        sa.Column("body", sa.String),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("done_at", AT),
        sa.Column("last_status", sa.Integer),
        sa.Column("last_error", sa.String, nullable=False),
        sa.Column("lease_token", sa.String(32)),
        sa.Column("lease_expires_at", AT),
        sa.Column("next_check_at", AT, nullable=False),
        sa.UniqueConstraint("webhook_id", "experiment_id", "event", "occurrence", name="deliveries_once"),
    )
    op.create_index("deliveries_due", "deliveries", ["done_at", "next_check_at"])


def downgrade() -> None:
    op.drop_table("deliveries")
    op.drop_table("webhooks")
    op.drop_index("runs_waiting", "runs")
    with op.batch_alter_table("runs") as table:
        table.drop_column("waits_since")
    with op.batch_alter_table("experiments") as table:
        table.drop_column("waits_since")
        table.drop_column("opened")
