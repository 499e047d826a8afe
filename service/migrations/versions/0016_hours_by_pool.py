"""Which node pools the hours of runs were in. Of hours before, that is not known."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0016"
down_revision = "0015"

JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    with op.batch_alter_table("runs") as table:
        table.add_column(sa.Column("pool_seconds", JSON, nullable=False, server_default="{}"))
    op.create_table(
        "pool_charges",
        sa.Column("run_id", sa.String(), sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("experiment_id", sa.String(), sa.ForeignKey("experiments.id"), primary_key=True, index=True),
        sa.Column("pool", sa.String(), primary_key=True),
        sa.Column("process_seconds", sa.Double(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("pool_charges")
    with op.batch_alter_table("runs") as table:
        table.drop_column("pool_seconds")
