"""Where an attempt was sent, what it printed last, and a run's stretches of training."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"

JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    # The defaults are for rows that are there already; the code always says what it writes.
    with op.batch_alter_table("attempts") as table:
        table.add_column(sa.Column("pool", sa.String(), nullable=False, server_default=""))
        table.add_column(sa.Column("log_tail", sa.String(), nullable=False, server_default=""))
    with op.batch_alter_table("runs") as table:
        table.add_column(sa.Column("sessions", JSON, nullable=False, server_default="[]"))


def downgrade() -> None:
    with op.batch_alter_table("runs") as table:
        table.drop_column("sessions")
    with op.batch_alter_table("attempts") as table:
        table.drop_column("log_tail")
        table.drop_column("pool")
