"""Our schedulers for the `torchx` command line, which finds them by the entry points in pyproject.toml.

TorchX forgets its own as soon as there is one entry point, so these are listed there as well.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

from kubernetes import client
from torchx.schedulers.api import Scheduler

from k8s.cluster import api_client
from k8s.jobset_scheduler import JobSetScheduler
from k8s.pools import NoCluster, Pool, read_pools
from k8s.volcano_scheduler import VolcanoScheduler


def create_jobset(session_name: str, **_: object) -> Scheduler:
    return JobSetScheduler(session_name, _pools(), _namespace(), _api())


def create_volcano(session_name: str, **_: object) -> Scheduler:
    return VolcanoScheduler(session_name, _pools(), _namespace(), _api())


def _pools() -> Mapping[str, Pool]:
    """None at all is no error yet: `torchx runopts` makes every scheduler, whoever asks for which."""
    path = os.environ.get("MCF_POOLS")
    return read_pools(Path(path)) if path else {}


def _namespace() -> str:
    return os.environ.get("MCF_NAMESPACE") or "default"


def _api() -> client.ApiClient:
    """A dry run needs no cluster, and so it goes on without one."""
    try:
        return api_client()
    except NoCluster as error:
        warnings.warn(f"nothing can be sent: {error}", stacklevel=2)
        return client.ApiClient()
