"""What decides a run's weights has a digest of its own; defaults are in no digest (trainer/contract/identity.py)."""

import json

import sqlalchemy as sa
from alembic import op
from pydantic import ValidationError

from trainer.contract import RunSpec

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    with op.batch_alter_table("runs") as table:
        table.add_column(sa.Column("pretraining", sa.String(length=64), nullable=False, server_default=""))
        table.add_column(sa.Column("private_to", sa.String(length=16), nullable=False, server_default=""))
        table.add_column(sa.Column("weights_of", sa.String(length=16), nullable=True))
    op.create_index("ix_runs_pretraining", "runs", ["pretraining"])
    bind = op.get_bind()
    rows = bind.execute(
        sa.text("SELECT r.id, r.spec, r.home_id, e.spec FROM runs r JOIN experiments e ON e.id = r.home_id")
    ).all()
    for id, spec, home, asked in rows:
        try:
            run = RunSpec.model_validate(_json(spec))
        except ValidationError:
            # Of a version before 0001's contract: nothing that can be asked for today is equal to it.
            continue
        private_to = "" if _json(asked).get("share", True) else home
        bind.execute(
            sa.text("UPDATE runs SET digest = :digest, pretraining = :weights, private_to = :private WHERE id = :id"),
            {"digest": run.digest, "weights": run.pretraining, "private": private_to, "id": id},
        )


def _json(value: object) -> dict[str, object]:
    """PostgreSQL has read it already."""
    found: dict[str, object] = json.loads(value) if isinstance(value, str) else value  # type: ignore[assignment]
    return found


def downgrade() -> None:
    # Digests stay those of this version: equal runs are then trained again, and nothing is lost.
    op.drop_index("ix_runs_pretraining", "runs")
    with op.batch_alter_table("runs") as table:
        table.drop_column("weights_of")
        table.drop_column("private_to")
        table.drop_column("pretraining")
