"""Values that the chart is rendered with: each option by itself, all of them together, each part left out."""

from pathlib import Path
from typing import Any

import yaml

from tests.chart.release import ROOT, merged

Values = dict[str, Any]

BASE: Values = {"store": {"uri": "s3://bucket/mcf"}}
RUNS = "chart-render-runs"
OWN_DATABASE: Values = {"postgresql": {"enabled": False}, "database": {"existingSecret": "database"}}
PLACED: Values = {
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "system", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "preference": {"matchExpressions": [{"key": "spot", "operator": "DoesNotExist"}]}}
            ]
        }
    },
}
DRESSED: Values = {
    **PLACED,
    "podAnnotations": {"example.com/owner": "vision"},
    "podLabels": {"example.com/team": "vision"},
    "priorityClassName": "system-cluster-critical",
    "env": [
        {"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    ],
    "resources": {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}},
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/mcf"}},
}
INGRESS: Values = {
    "enabled": True, "className": "nginx", "host": "mcf.example", "tlsSecret": "mcf-tls",
    "annotations": {"nginx.ingress.kubernetes.io/proxy-read-timeout": "3600"},
}  # fmt: skip
GPU_POOL: Values = {
    "image": "registry.example/trainer:1", "image_pull_secrets": ["pull"], "gpus": 8, "cpu": "12", "memory": "400Gi",
    "shm": "64Gi", "cache": {"size": "1Ti", "storage_class": "ssd"}, "node_selector": {"pool": "a100-spot"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}], "one_zone": True, "service_account": "trainer",
    "env": {"NCCL_DEBUG": "WARN"}, "env_from_secrets": ["more"], "priority_class": "low",
    "rendezvous": {"node_selector": {"pool": "on-demand"}, "cpu": "100m"}, "deadline_seconds": 86400,
}  # fmt: skip
KUEUE: Values = {
    "queues": [{"kind": "kueue", "name": "research", "clusterQueue": "gpus"}],
    "pools": {"a100": {"queue": {"kind": "kueue", "name": "research", "priority_class": "high"}}},
}
VOLCANO: Values = {
    "scheduler": "volcano",
    "queues": [{"kind": "volcano", "name": "research", "weight": 2, "capability": {"nvidia.com/gpu": 16, "cpu": "64"}}],
    "pools": {"a100": {"queue": {"kind": "volcano", "name": "research"}}},
}
NETWORK: Values = {
    "networkPolicy": {
        "clients": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}],
        "egressPorts": [443, 6443, 5432],
    }
}
EXTRA: Values = {
    "extraManifests": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "extra"}, "data": {"of": "{{ .Release.Name }}"}},
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: extra-text}\ndata: {of: '{{ .Release.Name }}'}\n",
    ]
}

# Options, each by itself.
OPTIONS: dict[str, Values] = {
    "as it comes": {},
    "volcano": VOLCANO,
    "kueue": KUEUE,
    "pools": {"pools": {"local": None, "a100-spot": GPU_POOL, "cpu": {"cpu": "500m"}}},
    "registry": {"imageRegistry": "registry.example/team/", "imagePullSecrets": ["pull"]},
    "digest": {"service": {"image": {"digest": "sha256:" + "a" * 64}}},
    "names": {"nameOverride": "faces", "fullnameOverride": "faces-one"},
    "one service": {"service": {"replicas": 1, "port": 8080, "settings": {"observeSeconds": 2.5, "leaseSeconds": 30}}},
    "own token": {"service": {"token": {"existingSecret": "token", "key": "api.token"}}},
    "dressed": {"service": DRESSED, "mlflow": DRESSED, "postgresql": PLACED},
    "monitored": {"service": {"serviceMonitor": {"enabled": True, "interval": "15s", "labels": {"release": "prom"}}}},
    "ingress": {"service": {"ingress": INGRESS}, "mlflow": {"ingress": {"enabled": True, "host": "mlflow.example"}}},
    "keys": {"store": {"existingSecret": "s3", "endpoint": "http://s3.example:9000", "region": "eu-central-1"}},
    "irsa": {
        "service": {"serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/a"}}},
        "trainer": {
            "serviceAccount": {"create": True, "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/b"}}
        },
    },
    "own accounts": {
        "service": {"serviceAccount": {"create": False, "name": "mine"}},
        "mlflow": {"serviceAccount": {"create": False}},
        "trainer": {"serviceAccount": {"name": "theirs"}},
    },
    "own database": {**OWN_DATABASE, "mlflow": {"database": {"existingSecret": "database", "key": "mlflow"}}},
    "own mlflow": {
        "mlflow": {
            "enabled": False, "url": "https://mlflow.example",
            "auth": {"existingSecret": "mlflow", "existingRunsSecret": "mlflow-runs"},
        }
    },
    "no mlflow": {"mlflow": {"enabled": False}},
    "open mlflow": {"mlflow": {"auth": {"enabled": False}}},
    "own mlflow logins": {
        "mlflow": {
            "auth": {"existingSecret": "admin", "existingRunsSecret": "runs", "existingServerSecret": "signs"},
            "workers": 4, "allowedHosts": ["*.example", "mlflow:8080"], "corsOrigins": ["https://x.example"],
        }
    },
    "volume": {"postgresql": {"uid": 70, "storage": {"size": "20Gi", "className": "ssd"}}},
    "runs elsewhere": {"trainer": {"namespace": RUNS, "serviceAccount": {"create": True}}},
    "no rights": {"rbac": {"create": False}},
    "no view of others": {"rbac": {"clusterPods": False}},
    "no policies": {"networkPolicy": {"enabled": False}},
    "closed network": NETWORK,
    "deletes runs": {"uninstall": {"deleteRuns": True}},
    "extra": EXTRA,
    "no disruption budget": {"service": {"podDisruptionBudget": {"enabled": False}}},
}  # fmt: skip

_TOGETHER = [
    "pools", "kueue", "registry", "dressed", "monitored", "ingress", "keys", "irsa", "own mlflow logins", "volume",
    "runs elsewhere", "closed network", "deletes runs", "extra",
]  # fmt: skip
_LEFT_OUT = ["no mlflow", "no rights", "no policies", "no disruption budget", "one service"]


def _all_of(names: list[str], values: Values) -> Values:
    for name in names:
        values = merged(values, OPTIONS[name])
    return values


MATRIX: dict[str, Values] = {
    **OPTIONS,
    "everything": _all_of(_TOGETHER, {}),
    "everything on volcano": _all_of(["volcano", *(name for name in _TOGETHER if name != "kueue")], {}),
    "nothing": _all_of(_LEFT_OUT, OWN_DATABASE),
}

# The files that docs/install.md uses.
EXAMPLES: dict[str, Values] = {
    path.name: yaml.safe_load(path.read_text()) for path in sorted(Path(ROOT / "examples/values").glob("*.yaml"))
}

# (what is wrong, values, words that the refusal has to hold)
REFUSED: list[tuple[str, Values, str]] = [
    ("no store", {"store": {"uri": ""}}, "store.uri: where runs leave checkpoints"),
    ("a folder for a store", {"store": {"uri": "/data"}}, "/store/uri"),
    ("a typing mistake", {"service": {"replica": 2}}, "replica"),
    ("a typing mistake at the top", {"mlfow": {}}, "mlfow"),
    ("a typing mistake in a pool", {"pools": {"a100": {"nodeSelector": {}}}}, "nodeSelector"),
    ("a typing mistake in a pool's queue", {"pools": {"a": {"queue": {"nam": "x"}}}}, "nam"),
    ("a number where a pool wants words", {"pools": {"a100": {"cpu": 12}}}, "got number, want string"),
    ("a pool's user is root", {"pools": {"a100": {"run_as_user": 0}}}, "/pools/a100/run_as_user"),
    ("a pool's name that a spec cannot have", {"pools": {"A100": {}}}, "A100"),
    ("no pool", {"pools": {"local": None}}, "pools: runs have nowhere to go"),
    ("no replicas", {"service": {"replicas": 0}}, "/service/replicas"),
    ("an unknown setting", {"service": {"settings": {"ticks": 1}}}, "ticks"),
    ("a setting's bound", {"service": {"settings": {"maxConcurrentRuns": 0}}}, "/service/settings/maxConcurrentRuns"),
    ("an unknown scheduler", {"scheduler": "slurm"}, "/scheduler"),
    ("a digest without its kind", {"service": {"image": {"digest": "abc"}}}, "/service/image/digest"),
    ("two databases", {"database": {"existingSecret": "x"}}, "set postgresql.enabled=false"),
    ("no database", {"postgresql": {"enabled": False}}, "needs database.existingSecret"),
    ("no database for MLflow", OWN_DATABASE, "set mlflow.database.existingSecret"),
    ("two MLflows", {"mlflow": {"url": "http://mlflow"}}, "set mlflow.enabled=false"),
    ("a way to no MLflow", {"mlflow": {"enabled": False, "ingress": INGRESS}}, "set mlflow.ingress.enabled=false"),
    ("a login to no MLflow", {"mlflow": {"enabled": False, "auth": {"existingSecret": "x"}}}, "set mlflow.url"),
    ("a login that nobody asks for", {"mlflow": {"auth": {"enabled": False, "existingSecret": "x"}}}, "leave"),
    ("a path", {"service": {"ingress": {**INGRESS, "path": "/mcf"}}}, "service.ingress.path: /mcf was asked for"),
    ("MLflow's path", {"mlflow": {"ingress": {**INGRESS, "path": "/ml"}}}, "mlflow.ingress.host"),
    ("an ingress without host", {"service": {"ingress": {"enabled": True}}}, "needs service.ingress.host"),
    ("annotations of nobody", {"trainer": {"serviceAccount": {"annotations": {"a": "b"}}}}, "create=true"),
    ("rights for everybody", {"service": {"serviceAccount": {"create": False}}}, "needs service.serviceAccount.name"),
    (
        "policies that are off",
        {"networkPolicy": {"enabled": False, "egressPorts": [443]}},
        "networkPolicy.enabled=true",
    ),
    ("deleting without rights", {"rbac": {"create": False}, "uninstall": {"deleteRuns": True}}, "rbac.create=true"),
    ("Kueue for Volcano jobs", {**KUEUE, "scheduler": "volcano"}, "has to be volcano"),
    ("Volcano for JobSets", {**VOLCANO, "scheduler": "jobset"}, "has to be kueue"),
    ("a queue before nothing", {"queues": [{"kind": "kueue", "name": "x"}]}, "needs clusterQueue"),
    ("a share of Kueue", {"queues": [{"kind": "kueue", "name": "x", "clusterQueue": "all", "weight": 2}]}, "Volcano's"),
    ("a nameless queue", {"queues": [{"kind": "kueue"}]}, "name"),
    (
        "a variable that is a value",
        {"service": {"env": [{"name": "MCF_STORE", "value": "x"}]}},
        "set store.uri instead",
    ),
]
