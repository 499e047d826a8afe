"""What the service is told by its surroundings: MCF_* variables. Nothing here changes a run's numbers."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Literal, Self
from urllib.parse import quote

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from trainer.store.loopback import LOOPBACK


def sqlite_url(file: Path) -> str:
    """SQLAlchemy's address of a database in a file, whatever the file is called."""
    return f"sqlite:///{quote(str(file))}"


class Settings(BaseSettings):
    """Every value with its unit and reason; made once by `python -m service`, and by each test for itself."""

    model_config = SettingsConfigDict(env_prefix="MCF_", use_attribute_docstrings=True, extra="ignore")

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    work_dir: Path = Path(".mcf")
    """Attempts and their logs on this machine, and the database unless `database_url` names another."""
    database_url: str = ""
    """SQLAlchemy address, such as postgresql://user:password@host/mcf; empty = SQLite in `work_dir`."""
    store: str = ""
    """Where runs leave checkpoints and results: a folder or s3://bucket/prefix; empty = `work_dir`/store."""
    tracking_uri: str | None = None
    """MLflow server; None = runs are not tracked, and are not held back by it."""
    token: SecretStr | None = None
    """The first token: admin of every project, and what others are made with (docs/access.md). Required as soon as
    `host` is not loopback; without it the service asks nobody for a token."""
    max_concurrent_runs: int = Field(2, ge=1)
    """Runs in flight at once over all experiments: what this machine or cluster is given at a time."""
    scheduler: Literal["local", "jobset", "volcano"] = "local"
    """Where attempts run: processes of this machine, or JobSets or Volcano jobs on Kubernetes."""
    pools: Path | None = None
    """On Kubernetes: the file of node pools that a spec may name (k8s/pools.py)."""
    namespace: str = "default"
    """On Kubernetes: the namespace that attempts run in."""

    currency: str = Field("USD", pattern=r"^\S{1,8}$")
    """Of the prices of the node pools (`price_per_gpu_hour`, docs/pools.md)."""
    public_url: str = Field("", pattern=r"^(https?://\S+)?$")
    """Address at which people open the pages, for the links that webhooks are sent (docs/notify.md); empty = none."""
    user_code: bool = False
    """Whether specs may name user code: Python files that workers execute with their own rights (docs/user-code.md).
    `mcf up` allows it. The service itself never executes any."""

    tick_seconds: float = Field(0.5, gt=0)
    """Pause between two looks of the reconciler; one look is a few milliseconds of SQL."""
    observe_seconds: float = Field(1.0, gt=0)
    """Pause between two looks at one run, which ask the scheduler; on a cluster its watches answer, and what is new is
    looked at at once. Longer with more than 50 runs in flight (docs/scale.md)."""
    progress_seconds: float | None = Field(None, gt=0)
    """Pause between two reads of a training run's directory: progress on the page is as old as that. None = 2 on this
    machine, as often as trainers write, and 10 on a cluster, where each is a request to S3. Longer with more than 100
    runs in flight (docs/scale.md)."""
    lease_seconds: float = Field(60.0, gt=0)
    """How long a dead service keeps others from its runs; longer than one look with slow answers takes."""
    undo_days: float = Field(7.0, ge=0)
    """How long a deleted experiment can be restored; then what only it has used is removed."""
    keep_checkpoints: int = Field(1, ge=0)
    """Of a run that has succeeded, the last ones: what more measurements start from; 0 = all. A project may keep more
    or fewer (docs/retention.md)."""
    reconcile_threads: int = Field(8, ge=1)
    """Runs looked at in parallel, so that one slow answer holds up one of them."""
    tracking_timeout_seconds: int = Field(5, ge=1)
    """For one request to MLflow."""

    @property
    def database(self) -> str:
        return self.database_url or sqlite_url(self.work_dir.resolve() / "mcf.db")

    @property
    def attempts_dir(self) -> Path:
        return self.work_dir.resolve() / "attempts"

    @property
    def store_uri(self) -> str:
        if self.store.startswith("s3://"):
            return self.store.rstrip("/")
        return str(Path(self.store.removeprefix("file://") or self.work_dir / "store").resolve())

    def run_uri(self, run_id: str) -> str:
        return f"{self.store_uri}/runs/{run_id}"

    @property
    def progress_pause(self) -> timedelta:
        return timedelta(seconds=self.progress_seconds or (2.0 if self.scheduler == "local" else 10.0))

    @property
    def cores(self) -> int:
        return len(os.sched_getaffinity(0))

    @model_validator(mode="after")
    def _a_cluster_has_pools_and_a_store_that_its_nodes_reach(self) -> Self:
        if self.scheduler != "local" and not (self.pools and self.store.startswith("s3://")):
            raise ValueError(
                f"MCF_SCHEDULER={self.scheduler} needs MCF_POOLS, a file of node pools, and MCF_STORE=s3://..."
            )
        return self

    @model_validator(mode="after")
    def _open_to_others_only_with_a_token(self) -> Self:
        if self.host not in LOOPBACK and not (self.token and self.token.get_secret_value()):
            raise ValueError(
                f"MCF_HOST={self.host} is reachable from other machines; set MCF_TOKEN to a secret that clients "
                "send as `Authorization: Bearer ...`, or listen on 127.0.0.1"
            )
        return self
