"""A TorchX scheduler that sends attempts to Kubernetes as JobSets. What is sent is decided in jobset.py."""

from torchx.specs import AppDef, AppState

from k8s.cluster import Kind
from k8s.jobset import jobset_for
from k8s.observed import jobset_state
from k8s.pods import Object
from k8s.pools import Pool
from k8s.scheduler import ClusterScheduler


class JobSetScheduler(ClusterScheduler):
    """Attempts as JobSets."""

    backend = "jobset"
    kind = Kind("jobset.x-k8s.io", "v1alpha2", "jobsets", "batch.kubernetes.io/job-completion-index", makes_jobs=True)

    def manifest(self, app: AppDef, pool: Pool, processes: int) -> Object:
        return jobset_for(app, pool, processes=processes, namespace=self.cluster.namespace)

    def job_state(self, job: Object) -> tuple[AppState, str]:
        return jobset_state(job)
