"""Looks of experiments whose seeds come in rounds."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"

JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    with op.batch_alter_table("experiments") as table:
        table.add_column(sa.Column("looks", JSON, nullable=False, server_default="[]"))
    with op.batch_alter_table("arms") as table:
        table.add_column(sa.Column("sample", JSON, nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("experiments") as table:
        table.drop_column("looks")
    with op.batch_alter_table("arms") as table:
        table.drop_column("sample")
