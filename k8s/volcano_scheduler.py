"""A TorchX scheduler that sends attempts to Kubernetes as Volcano jobs. What is sent is decided in volcano.py."""

from torchx.specs import AppDef, AppState

from k8s.cluster import Kind
from k8s.pods import Object
from k8s.pools import Pool
from k8s.scheduler import ClusterScheduler
from k8s.volcano import INDEX_LABEL, vcjob_for
from k8s.volcano_observed import vcjob_state


class VolcanoScheduler(ClusterScheduler):
    """Attempts as Volcano jobs."""

    backend = "volcano"
    kind = Kind("batch.volcano.sh", "v1alpha1", "jobs", INDEX_LABEL)

    def manifest(self, app: AppDef, pool: Pool, processes: int) -> Object:
        named = app.roles[0].metadata.get("extra_pools", ())
        # Nothing moves a task: its pods wait for the first.
        elsewhere = next(((name, self.pools[name]) for name in named if name in self.pools), None)
        return vcjob_for(app, pool, processes=processes, namespace=self.cluster.namespace, elsewhere=elsewhere)

    def job_state(self, job: Object) -> tuple[AppState, str]:
        return vcjob_state(job)
