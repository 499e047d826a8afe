"""Runs of a pretraining that have ended so are found by one index: with 9,000 ended runs and 1,000 that wait, SQLite
took the index of states instead, and giving out places took 28 s."""

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.create_index("runs_of_pretraining", "runs", ["pretraining", "private_to", "state"])
    op.drop_index("ix_runs_pretraining", "runs")


def downgrade() -> None:
    op.create_index("ix_runs_pretraining", "runs", ["pretraining"])
    op.drop_index("runs_of_pretraining", "runs")
