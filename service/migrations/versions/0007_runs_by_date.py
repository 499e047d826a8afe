"""The list of runs begins with the newest."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_index("runs_newest", "runs", ["created_at", "id"])


def downgrade() -> None:
    op.drop_index("runs_newest", "runs")
