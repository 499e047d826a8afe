"""What is measured of runs while they train."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"

JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    with op.batch_alter_table("runs") as table:
        table.add_column(sa.Column("readings", JSON, nullable=True))
        table.add_column(sa.Column("last_reading", sa.Integer(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("runs") as table:
        for name in "readings", "last_reading":
            table.drop_column(name)
