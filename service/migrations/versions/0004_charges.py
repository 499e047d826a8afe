"""What a run cost each experiment that had it trained."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "charges",
        sa.Column("run_id", sa.String(16), sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("experiment_id", sa.String(16), sa.ForeignKey("experiments.id"), primary_key=True),
        sa.Column("process_seconds", sa.Double(), nullable=False),
    )
    op.create_index("ix_charges_experiment_id", "charges", ["experiment_id"])
    # Who paid before the present home was not written down.
    op.execute("INSERT INTO charges SELECT id, home_id, process_seconds FROM runs WHERE process_seconds > 0")


def downgrade() -> None:
    op.drop_table("charges")
