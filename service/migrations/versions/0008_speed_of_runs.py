"""How fast runs train, what share of that time they wait for images, and how long they compile."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

MEANS = ("mean_images_per_second", "waiting_share", "peak_share")


def upgrade() -> None:
    with op.batch_alter_table("runs") as table:
        for name in MEANS:
            table.add_column(sa.Column(name, sa.Double(), nullable=True))
        table.add_column(sa.Column("compile_seconds", sa.Double(), nullable=False, server_default="0"))


def downgrade() -> None:
    with op.batch_alter_table("runs") as table:
        for name in (*MEANS, "compile_seconds"):
            table.drop_column(name)
