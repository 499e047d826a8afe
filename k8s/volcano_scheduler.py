"""A TorchX scheduler that sends attempts to Kubernetes as Volcano jobs. What is sent is decided in volcano.py."""

from k8s.jobset_scheduler import JobSetScheduler
from k8s.volcano import INDEX_LABEL, JOB_LABEL, TASK_LABEL, vcjob_for
from k8s.volcano_observed import state_of


class VolcanoScheduler(JobSetScheduler):
    """As the one for JobSets, with another kind of object."""

    group, version, plural = "batch.volcano.sh", "v1alpha1", "jobs"
    labels = JOB_LABEL, TASK_LABEL
    index_label = INDEX_LABEL
    manifest_for = staticmethod(vcjob_for)
    state_of = staticmethod(state_of)
