"""Pauses, runs and arms that are cancelled by themselves, who made what, and the audit."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

COLUMNS = {
    "experiments": ("pause_reason", "created_by"),
    "arms": ("cancel_reason",),
    "runs": ("pause_reason",),
    "trials": ("cancel_reason", "pause_reason"),
    "tokens": ("created_by",),
}


def upgrade() -> None:
    for name, columns in COLUMNS.items():
        for column in columns:
            kind = sa.String(63) if column == "created_by" else sa.String()
            op.add_column(name, sa.Column(column, kind, nullable=False, server_default=""))
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("token_id", sa.String(16), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("project", sa.String(63)),
        sa.Column("action", sa.String(63), nullable=False),
        sa.Column("object", sa.String(200), nullable=False),
        sa.Column("asked", sa.String(1000), nullable=False),
        sa.Column("address", sa.String(200), nullable=False),
        sa.Column("status", sa.Integer),
    )
    op.create_index("audit_of_project", "audit", ["project", "id"])


def downgrade() -> None:
    op.drop_table("audit")
    # An older release cannot read the word.
    op.execute("UPDATE runs SET state = 'queued', admitted = false WHERE state = 'paused'")
    for name, columns in COLUMNS.items():
        with op.batch_alter_table(name) as table:
            for column in columns:
                table.drop_column(column)
