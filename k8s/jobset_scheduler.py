"""A TorchX scheduler that sends attempts to Kubernetes as JobSets. What is sent is decided in jobset.py.

An attempt has one name, so submitting it twice is harmless, and nothing is remembered here: any number of services
may use one namespace.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from torchx.schedulers.api import DescribeAppResponse, ListAppResponse, Scheduler, Stream, filter_regex
from torchx.specs import AppDef, AppDryRunInfo, AppState, runopts

from k8s.asked import asked, options
from k8s.jobset import LABEL, PREFIX, WORKER, jobset_for, jobset_name
from k8s.observed import Observed, state_of
from k8s.pods import Manifest
from k8s.pools import Pool

NOT_FOUND, CONFLICT = 404, 409
# A request that is not answered by then is asked again by whoever looks next; an API server may be away for minutes.
REQUEST_SECONDS = 10


class JobSetScheduler(Scheduler):  # type: ignore[misc]  # TorchX ships no types
    """One namespace of one cluster. Raises kubernetes' ApiException, and urllib3's errors where nobody answers."""

    group, version, plural = "jobset.x-k8s.io", "v1alpha2", "jobsets"
    # Labels of worker pods, with their object's name and their task's, and that of a pod's number.
    labels = "jobset.sigs.k8s.io/jobset-name", "jobset.sigs.k8s.io/replicatedjob-name"
    index_label = "batch.kubernetes.io/job-completion-index"
    manifest_for: Callable[..., Manifest] = staticmethod(jobset_for)
    state_of: Callable[[Observed, Sequence[Observed]], tuple[AppState, str]] = staticmethod(state_of)

    def __init__(
        self, session_name: str, pools: Mapping[str, Pool], namespace: str, api: client.ApiClient | None = None
    ) -> None:
        """`api`: None = the pod's own service account, or the kubeconfig of who runs this."""
        super().__init__(self.plural, session_name)
        self.pools, self.namespace = pools, namespace
        api = api or _api_client()
        # Generated code, whose types say less than nothing.
        self._objects: Any = client.CustomObjectsApi(api)
        self._pods: Any = client.CoreV1Api(api)
        self._api = api

    def _run_opts(self) -> runopts:
        return options(self.pools)

    def _validate(self, app: AppDef, scheduler: str, *more: object) -> None:
        """Nothing beyond what building the manifest finds out."""

    def _submit_dryrun(self, app: AppDef, cfg: Mapping[str, Any]) -> AppDryRunInfo[dict[str, Any]]:
        app, pool, processes = asked(app, cfg, self.pools)
        manifest = self.manifest_for(app, pool, processes=processes, namespace=self.namespace)
        return AppDryRunInfo(manifest, lambda manifest: json.dumps(manifest, indent=2))

    def schedule(self, dryrun_info: AppDryRunInfo[dict[str, Any]]) -> str:
        """Send the attempt, or find that it has been sent before. Returns its name."""
        manifest = dryrun_info.request
        try:
            self._objects.create_namespaced_custom_object(
                self.group, self.version, self.namespace, self.plural, manifest, _request_timeout=REQUEST_SECONDS
            )
        except ApiException as error:
            if error.status != CONFLICT:
                raise
        name: str = manifest["metadata"]["labels"][LABEL]
        return name

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """State of an attempt and why it waits; None when there is none of that name."""
        try:
            jobset = self._objects.get_namespaced_custom_object(
                self.group,
                self.version,
                self.namespace,
                self.plural,
                jobset_name(app_id),
                _request_timeout=REQUEST_SECONDS,
            )
        except ApiException as error:
            if error.status == NOT_FOUND:
                return None
            raise
        state, message = self.state_of(jobset, [self._plain(pod) for pod in self._pods_of(app_id)])
        return DescribeAppResponse(app_id=app_id, state=state, num_restarts=0, msg=message)

    def list(self) -> list[ListAppResponse]:
        """Every attempt in the namespace."""
        found = self._objects.list_namespaced_custom_object(
            self.group,
            self.version,
            self.namespace,
            self.plural,
            label_selector=LABEL,
            _request_timeout=REQUEST_SECONDS,
        )["items"]
        return [
            ListAppResponse(app_id=jobset["metadata"]["name"].removeprefix(PREFIX), state=self.state_of(jobset, [])[0])
            for jobset in found
        ]

    def _cancel_existing(self, app_id: str) -> None:
        """Ask its pods to stop. The attempt is there until they have, each within its grace period."""
        self._objects.delete_namespaced_custom_object(
            self.group, self.version, self.namespace, self.plural, jobset_name(app_id),
            propagation_policy="Foreground", _request_timeout=REQUEST_SECONDS,
        )  # fmt: skip

    def log_iter(
        self,
        app_id: str,
        role_name: str,
        k: int = 0,
        regex: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        should_tail: bool = False,
        streams: Stream | None = None,
    ) -> Iterable[str]:
        """Lines that the pods of node `k` printed, one pod after the other: a replaced one has a successor."""
        lines = self._lines(app_id, k, follow=should_tail)
        return filter_regex(regex, lines) if regex else lines

    def close(self) -> None:
        self._api.close()

    def _lines(self, app_id: str, node: int, *, follow: bool) -> Iterator[str]:
        pods = [pod for pod in self._pods_of(app_id) if pod.metadata.labels.get(self.index_label) == str(node)]
        pods = [pod for pod in pods if pod.status.phase not in ("Pending", "Unknown")]
        for pod in sorted(pods, key=lambda pod: pod.metadata.creation_timestamp):
            answer = self._pods.read_namespaced_pod_log(
                pod.metadata.name, self.namespace, follow=follow and pod is pods[-1], _preload_content=False
            )
            with closing(answer):
                for line in answer:
                    yield line.decode(errors="replace")

    def _pods_of(self, app_id: str) -> Sequence[Any]:
        of, task = self.labels
        selector = f"{of}={jobset_name(app_id)},{task}={WORKER}"
        found: Sequence[Any] = self._pods.list_namespaced_pod(
            self.namespace, label_selector=selector, _request_timeout=REQUEST_SECONDS
        ).items
        return found

    def _plain(self, pod: Any) -> dict[str, Any]:
        plain: dict[str, Any] = self._api.sanitize_for_serialization(pod)
        return plain


def _api_client() -> client.ApiClient:
    try:
        config.load_incluster_config()
    except config.ConfigException:
        config.load_kube_config()
    return client.ApiClient()
