"""What an app, with the options of `torchx run -cfg`, asks of a cluster: a pool, and processes of a node. Pure, but for
the name of an app that is none of the service's.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from torchx.schedulers.ids import make_unique
from torchx.specs import AppDef, InvalidRunConfigException, Role, macros, runopts
from torchx.util.strings import normalize_str

from k8s.appdef import MAX_RESTARTS, RENDEZVOUS
from k8s.pools import Pool

POOL, PROCESSES = "pool", "processes_per_node"


class UnknownPool(ValueError):
    """No such node pool here."""


class NotOneRole(ValueError):
    """An attempt is so many equal nodes, and nothing else."""


class Asked(NamedTuple):
    app: AppDef
    pool: Pool
    processes: int


def options(pools: Mapping[str, Pool]) -> runopts:
    """What `torchx runopts` shows. The service gives none of these: its apps say it themselves."""
    opts = runopts()
    opts.add(POOL, str, help=f"node pool, image and all: {', '.join(sorted(pools)) or 'MCF_POOLS names none'}")
    opts.add(PROCESSES, int, help="worker processes of a node; with GPUs, as many of them")
    return opts


def asked(app: AppDef, options: Mapping[str, Any], pools: Mapping[str, Pool]) -> Asked:
    """The app as an attempt. Raises NotOneRole, UnknownPool, and InvalidRunConfigException for what nobody has said."""
    if len(app.roles) != 1:
        raise NotOneRole(f"{app.name} has the roles {', '.join(role.name for role in app.roles)}; possible: one")
    [role] = app.roles
    said = {name: options.get(name) or role.metadata.get(name) for name in (POOL, PROCESSES)}
    for name, value in said.items():
        if not value:
            raise InvalidRunConfigException(f"{app.name} does not say its {name}: -cfg {name}=...", name, dict(options))
    if said[POOL] not in pools:
        possible = ", ".join(sorted(pools)) or "none"
        raise UnknownPool(f"placement.pool: asked for {said[POOL]}; possible: {possible}")
    name = app.name
    if POOL not in role.metadata:
        role, name = _as_ours(role), normalize_str(make_unique(name))
    values = macros.Values(img_root="", app_id=name, replica_id=macros.replica_id, rank0_env=macros.rank0_env)
    role = values.apply(replace(role, metadata={**role.metadata, **said}))
    return Asked(replace(app, name=name, roles=[role]), pools[said[POOL]], said[PROCESSES])


def _as_ours(role: Role) -> Role:
    """A role of one of TorchX's own components: its agents meet in the store's pod, and may begin again."""
    environment = {
        "PET_RDZV_CONF": RENDEZVOUS,
        "PET_MAX_RESTARTS": str(MAX_RESTARTS),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        **role.env,
    }
    # dist.ddp names rank 0, in a line for the shell; `$$`: filling in the macros leaves one of them.
    args = [re.sub(r"--rdzv_endpoint \S+", "--rdzv_endpoint $$PET_RDZV_ENDPOINT", arg) for arg in role.args]
    return replace(role, env=environment, args=args)
