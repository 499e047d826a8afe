"""Which experiments the store has not the newest of, without a look at all of them."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

UNRECORDED = sa.text("recorded != revision AND purged_at IS NULL")


def upgrade() -> None:
    op.create_index(
        "experiments_unrecorded", "experiments", ["created_at", "id"], sqlite_where=UNRECORDED,
        postgresql_where=UNRECORDED,
    )  # fmt: skip


def downgrade() -> None:
    op.drop_index("experiments_unrecorded", "experiments")
