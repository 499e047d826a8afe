"""Deletion with undo, thinned checkpoints, limits of projects, and what the store has of an experiment."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

AT = sa.DateTime(timezone=True)
NEW = (
    "deleted_at",
    "purge_at",
    "purged_at",
    "restored_at",
    "delete_reason",
    "remove_objects",
    "remove_tracking",
    "revision",
    "recorded",
)


def upgrade() -> None:
    for name in "deleted_at", "purge_at", "purged_at", "restored_at":
        op.add_column("experiments", sa.Column(name, AT, nullable=True))
    op.add_column("experiments", sa.Column("delete_reason", sa.String, nullable=False, server_default=""))
    op.add_column("experiments", sa.Column("remove_objects", sa.Boolean, nullable=False, server_default=sa.true()))
    op.add_column("experiments", sa.Column("remove_tracking", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("experiments", sa.Column("revision", sa.Integer, nullable=False, server_default="1"))
    op.add_column("experiments", sa.Column("recorded", sa.Integer, nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("checkpoints_kept", sa.Integer, nullable=True))
    op.create_table(
        "doomed",
        sa.Column("run_id", sa.String(16), primary_key=True),
        sa.Column("remove_objects", sa.Boolean, nullable=False),
        sa.Column("tracking_run_id", sa.String),
        sa.Column("lease_token", sa.String(32)),
        sa.Column("lease_expires_at", AT),
        sa.Column("next_check_at", AT, nullable=False),
    )
    op.create_table(
        "projects",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("max_places", sa.Integer),
        sa.Column("max_queued", sa.Integer),
        sa.Column("max_priority", sa.Integer),
        sa.Column("delete_after_days", sa.Double),
        sa.Column("keep_checkpoints", sa.Integer),
    )


def downgrade() -> None:
    op.drop_table("projects")
    op.drop_table("doomed")
    # An older release would list them, without arms. Where another one has runs of theirs, they stay.
    purged = "(SELECT id FROM experiments WHERE purged_at IS NOT NULL)"
    op.execute(f"DELETE FROM charges WHERE experiment_id IN {purged}")
    op.execute(f"DELETE FROM experiments WHERE id IN {purged} AND id NOT IN (SELECT home_id FROM runs)")
    with op.batch_alter_table("runs") as table:
        table.drop_column("checkpoints_kept")
    with op.batch_alter_table("experiments") as table:
        for name in NEW:
            table.drop_column(name)
