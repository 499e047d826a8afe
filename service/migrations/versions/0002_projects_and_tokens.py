"""Experiments belong to a project, and requests carry tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TIME = sa.DateTime(timezone=True)

# The constraint of 0001 has the name that PostgreSQL gave it; in SQLite it has none, and gets one to be found by.
NAMING = {"uq": "%(table_name)s_%(column_0_name)s_key"}
OLD_KEY = "experiments_idempotency_key_key"


def upgrade() -> None:
    with op.batch_alter_table("experiments", naming_convention=NAMING) as experiments:
        experiments.add_column(sa.Column("project", sa.String(length=63), server_default="default", nullable=False))
        experiments.drop_constraint(OLD_KEY, type_="unique")
        experiments.create_unique_constraint("experiments_key_of_project", ["project", "idempotency_key"])
    op.create_index("experiments_of_project", "experiments", ["project", "created_at", "id"])

    op.create_table(
        "tokens",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column(
            "scope", sa.Enum("read", "submit", "admin", name="scope", native_enum=False, length=16), nullable=False
        ),
        sa.Column("project", sa.String(length=63), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("revoked_at", TIME, nullable=True),
        sa.Column("last_used_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )


def downgrade() -> None:
    op.drop_table("tokens")
    op.drop_index("experiments_of_project", "experiments")
    # Keys were unique in each project; they serve repeats within minutes, and one project may keep its own.
    op.execute("UPDATE experiments SET idempotency_key = NULL WHERE project <> 'default'")
    with op.batch_alter_table("experiments", naming_convention=NAMING) as experiments:
        experiments.drop_constraint("experiments_key_of_project", type_="unique")
        experiments.create_unique_constraint(OLD_KEY, ["idempotency_key"])
        experiments.drop_column("project")
