"""MLflow as the service sees it: parent run = experiment, child run = arm x seed, with final states.

The only module of the service that imports mlflow. Every call has a short timeout and no patience: who
calls says "MLflow is away" in the run's waiting reason and comes back later. After a failure the next few
seconds' calls fail at once, so that one silent MLflow does not hold up every run by a timeout.
"""

import itertools
import os
import re
import tempfile
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request, verify_rest_response

from service.states import RunState
from trainer.contract.records import witness
from trainer.tracking.refusals import deleted, is_refusal

FINAL_STATUS = {RunState.SUCCEEDED: "FINISHED", RunState.FAILED: "FAILED", RunState.CANCELLED: "KILLED"}
FAIL_AT_ONCE_SECONDS = 5.0
"""After a failure."""
MAX_PARAMS, MAX_METRICS = 100, 1000
"""In one request."""
NOTE, OUR_NOTE = "mlflow.note.content", "mcf.note"
PICTURES = "pictures"
MAX_RUNS_AT_ONCE = 100
"""That MLflow tells the histories of in one request."""
SAMPLED = "/api/2.0/mlflow/metrics/get-history-bulk-interval"


class TrackingAway(Exception):
    """MLflow did not do what was asked; the text says what, why and, where it does not pass by itself, what to do."""


class TrackingGone(TrackingAway):
    """MLflow has no such run or experiment, or no longer."""


class TrackingDeleted(TrackingAway):
    """The MLflow run or experiment was deleted, and can be restored."""


class TrackingRefused(TrackingAway):
    """MLflow answers, and will not do it: no permission, or a request that it does not take."""


@dataclass(frozen=True)
class TrackedRun:
    experiment_id: str
    run_id: str


class Tracker:
    """A thin layer over MlflowClient; safe to call from several threads."""

    def __init__(self, uri: str, timeout_seconds: int) -> None:
        # MLflow's defaults try for minutes (120 s a request, 7 retries).
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(timeout_seconds)
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        self.uri = uri.rstrip("/")
        self._client = MlflowClient(tracking_uri=uri)
        self._creating = threading.Lock()
        self._away_until = 0.0
        self._away_because = ""

    @property
    def is_away(self) -> bool:
        return time.monotonic() < self._away_until

    def ping(self) -> None:
        with self._calling("answering"):
            self._client.search_experiments(max_results=1)

    def ensure_parent(self, *, experiment_id: str, name: str, tags: Mapping[str, str]) -> TrackedRun:
        """The parent run of an experiment; found again by its tag when a crash came after its creation."""
        # The lock first: who waited for it while MLflow fell silent does not ask again.
        with self._creating, self._calling(f"the MLflow experiment {name!r}"):
            tracking_id = self._experiment(name)
            own = {"mcf.kind": "experiment", "mcf.experiment_id": experiment_id}
            return self._ensure(tracking_id, own, {**tags, "mlflow.runName": experiment_id})

    def ensure_child(
        self,
        parent: TrackedRun,
        *,
        own: Mapping[str, str],
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, str],
    ) -> TrackedRun:
        """The run of one trial with its params and tags, set to RUNNING; `own` are the tags that identify it."""
        with self._creating, self._calling(f"the MLflow run {name!r}"):
            child = self._ensure(
                parent.experiment_id, own, {**tags, "mlflow.runName": name, "mlflow.parentRunId": parent.run_id}
            )
            # Again on every attempt: a crash may have come between creation and here. What is there stays: a run that
            # another experiment wants now may be called otherwise there, and MLflow changes no param.
            known = self._client.get_run(child.run_id).data.params
            rows = [Param(key, value[:500]) for key, value in params.items() if key not in known]
            for start in range(0, len(rows), MAX_PARAMS):
                self._client.log_batch(child.run_id, params=rows[start : start + MAX_PARAMS])
            self._client.log_batch(child.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
            self._client.update_run(child.run_id, status="RUNNING")
            return child

    def finish(self, run_id: str, state: RunState, tags: Mapping[str, str]) -> None:
        """Set the final status. A run that was deleted there is nobody's worry."""
        try:
            with self._calling(f"the MLflow run {run_id}"):
                self._client.log_batch(run_id, tags=[RunTag(key, value[:5000]) for key, value in tags.items()])
                self._client.set_terminated(run_id, FINAL_STATUS[state])
        except (TrackingGone, TrackingDeleted):
            return

    def delete(self, run_id: str, *, copies: bool = False) -> None:
        """Delete a run there; with `copies` also its children that only copy a run of another experiment.

        As MLflow has it: `mlflow gc` removes it for good, and until then it can be restored.
        """
        with suppress(TrackingGone, TrackingDeleted), self._calling(f"the MLflow run {run_id}"):
            if copies:
                tracking_id = self._client.get_run(run_id).info.experiment_id
                mine = f"tags.`mlflow.parentRunId` = '{run_id}' and tags.`mcf.copy_of` != ''"
                for child in self._client.search_runs([tracking_id], mine, max_results=1000):
                    self._client.delete_run(child.info.run_id)
            self._client.delete_run(run_id)

    def expect_there(self, parent: TrackedRun) -> None:
        """Raises TrackingDeleted or TrackingGone, unless the experiment's parent run is there."""
        with self._calling(f"the MLflow run {parent.run_id}"):
            # A write that changes nothing, so that MLflow says it as it says it elsewhere.
            self._client.set_tag(parent.run_id, "mcf.kind", "experiment")

    def retire(self, parent: TrackedRun, experiment_id: str, current: Collection[str]) -> None:
        """Children of an experiment that are of none of these runs: others measure the same weights since."""
        mine = f"tags.`mcf.experiment_id` = '{experiment_id}' and tags.`mcf.kind` = 'run'"
        with self._calling(f"the runs of the MLflow experiment {parent.experiment_id}"):
            token, retired = None, list[str]()
            while token or token is None:
                page = self._client.search_runs([parent.experiment_id], mine, max_results=1000, page_token=token)
                for child in page:
                    tags = child.data.tags
                    if tags.get("mcf.copy_of", tags.get("mcf.run_id")) not in current:
                        retired.append(child.info.run_id)
                token = page.token or ""
            for run_id in retired:
                self._client.set_tag(run_id, "mcf.kind", "superseded")

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], at: datetime) -> None:
        """In one request. Logged again with the same time, the same numbers are still there once."""
        rows = [Metric(key, value, round(at.timestamp() * 1000), 0) for key, value in metrics.items()]
        with self._calling(f"the MLflow run {run_id}"):
            self._client.log_batch(run_id, metrics=rows)

    def send(self, run_id: str, rows: Iterable[tuple[int, int, Mapping[str, float]]]) -> None:
        """Metrics by step and time in milliseconds, but for rows that MLflow has already, of whatever time."""
        known, batch = dict[str, set[int]](), list[Metric]()
        with self._calling(f"the MLflow run {run_id}"):
            for step, at, values in rows:
                name = witness(values) if values else ""
                if name and name not in known:
                    known[name] = {point.step for point in self._client.get_metric_history(run_id, name)}
                if not name or step in known[name]:
                    continue
                known[name].add(step)
                # A row whole or not at all: by one of its metrics it is known again.
                if len(batch) + len(values) > MAX_METRICS:
                    self._client.log_batch(run_id, metrics=batch)
                    batch = []
                batch += [Metric(key, value, at, step) for key, value in values.items()]
            if batch:
                self._client.log_batch(run_id, metrics=batch)

    def upload(self, run_id: str, name: str, data: bytes) -> None:
        """An artifact; the same name again replaces."""
        folder, _, file = name.rpartition("/")
        with self._calling(f"artifacts of the MLflow run {run_id}"), tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, file)
            path.write_bytes(data)
            self._client.log_artifact(run_id, str(path), folder or None)

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        with self._calling(f"the MLflow run {run_id}"):
            self._client.log_batch(run_id, tags=[RunTag(key, value[:5000]) for key, value in tags.items()])

    def tag_experiment(self, tracking_id: str, name: str, value: str) -> None:
        with self._calling(f"the MLflow experiment {tracking_id}"):
            self._client.set_experiment_tag(tracking_id, name, value)

    def describe(self, parent: TrackedRun, text: str) -> None:
        """Markdown above the parent run, and above the list of runs unless a person has written something there."""
        with self._calling(f"the description of the MLflow run {parent.run_id}"):
            self._client.set_tag(parent.run_id, NOTE, text)
            theirs = self._client.get_experiment(parent.experiment_id).tags
            if theirs.get(NOTE, "") == theirs.get(OUR_NOTE, ""):
                for tag in NOTE, OUR_NOTE:
                    self._client.set_experiment_tag(parent.experiment_id, tag, text)

    def write(self, run_id: str, files: Mapping[str, str]) -> None:
        """Text artifacts by name; the same name again replaces."""
        with self._calling(f"artifacts of the MLflow run {run_id}"):
            for name, text in files.items():
                self._client.log_text(run_id, text, name)

    def register(self, name: str, run_id: str, path: str, *, aliases: Iterable[str], tags: Mapping[str, str]) -> None:
        """What the run has below `path` as a version of a registered model, made once; the aliases mean it."""
        with self._creating, self._calling(f"the registered model {name!r}"):
            found = self._client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
            if found:
                version = found[0]
            else:
                try:
                    self._client.create_registered_model(name)
                except MlflowException as error:
                    if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                        raise
                source = f"{self._client.get_run(run_id).info.artifact_uri}/{path}"
                version = self._client.create_model_version(name, source, run_id, tags=dict(tags))
            for alias in aliases:
                self._client.set_registered_model_alias(name, alias, version.version)

    def histories(self, run_id: str, names: list[str] | None = None) -> dict[str, list[tuple[int, float]]]:
        """Metric -> (step, value) in order; of a step that was logged twice the newest value."""
        with self._calling(f"metrics of the MLflow run {run_id}"):
            known = self._client.get_run(run_id).data.metrics
            found = {}
            for name in sorted(known) if names is None else [name for name in names if name in known]:
                history = sorted(self._client.get_metric_history(run_id, name), key=lambda point: point.timestamp)
                found[name] = sorted({point.step: point.value for point in history}.items())
            return found

    def sampled(self, run_ids: Sequence[str], name: str, points: int) -> dict[str, list[tuple[int, float]]]:
        """Run -> (step, value) of a metric in order, `points` of them at most; of up to MAX_RUNS_AT_ONCE runs."""
        # MlflowClient has no method for it, MLflow's own pages are drawn from it.
        with self._calling(f"the metric {name!r} of {len(run_ids)} runs"):
            answer = http_request(  # type: ignore[no-untyped-call]
                get_default_host_creds(self.uri), SAMPLED, "GET",  # type: ignore[no-untyped-call]
                params={"run_ids": list(run_ids), "metric_key": name, "max_results": points},
            )  # fmt: skip
            found: dict[str, dict[int, float]] = {}
            rows = verify_rest_response(answer, SAMPLED).json().get("metrics", [])
            for row in sorted(rows, key=lambda row: int(row.get("timestamp", 0))):
                found.setdefault(row["run_id"], {})[int(row.get("step", 0))] = float(row.get("value", 0.0))
            return {run_id: sorted(history.items()) for run_id, history in found.items()}

    def metric_names(self, run_id: str) -> list[str]:
        with self._calling(f"metrics of the MLflow run {run_id}"):
            return sorted(self._client.get_run(run_id).data.metrics)

    def pictures(self, run_id: str) -> dict[int, str]:
        """Step -> path of its picture, in order."""
        with self._calling(f"pictures of the MLflow run {run_id}"):
            paths = [item.path for item in self._client.list_artifacts(run_id, PICTURES)]
            steps = {int(found[1]): path for path in paths if (found := re.search(r"(\d+)\.png$", path))}
            return dict(sorted(steps.items()))

    def picture(self, run_id: str, path: str) -> bytes:
        with self._calling(f"pictures of the MLflow run {run_id}"), tempfile.TemporaryDirectory() as folder:
            return Path(self._client.download_artifacts(run_id, path, folder)).read_bytes()

    def _experiment(self, name: str) -> str:
        """Id of the MLflow experiment, created where there is none. One that was deleted still has its name: then it
        is `NAME (2)`."""
        for number in itertools.count(2):
            found = self._client.get_experiment_by_name(name) or self._create(name)
            if found.lifecycle_stage == "active":
                return str(found.experiment_id)
            name = f"{name.partition(' (')[0]} ({number})"
        raise AssertionError("unreachable")

    def _create(self, name: str) -> Any:
        try:
            return self._client.get_experiment(self._client.create_experiment(name))
        except MlflowException as error:
            # Another service was faster.
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
            return self._client.get_experiment_by_name(name)

    def _ensure(self, tracking_id: str, own: Mapping[str, str], tags: Mapping[str, str]) -> TrackedRun:
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in own.items())
        found = self._client.search_runs([tracking_id], query, max_results=1, order_by=["attributes.start_time ASC"])
        if found:
            return TrackedRun(tracking_id, found[0].info.run_id)
        created = self._client.create_run(tracking_id, tags={**tags, **own})
        return TrackedRun(tracking_id, created.info.run_id)

    @contextmanager
    def _calling(self, what: str) -> Iterator[None]:
        if self.is_away:
            raise TrackingAway(self._away_because)
        try:
            yield
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise TrackingGone(f"MLflow no longer has {what}: {error.message}") from error
            if is_refusal(error):
                raise self._refused(what, error) from error
            self._away_because = f"MLflow at {self.uri} does not answer ({what}): {error.message}"[:500]
            self._away_until = time.monotonic() + FAIL_AT_ONCE_SECONDS
            raise TrackingAway(self._away_because) from error

    def _refused(self, what: str, error: MlflowException) -> TrackingAway:
        with suppress(MlflowException):
            if words := deleted(self._client, error):
                return TrackingDeleted(words)
        # Of a proxy's page the first line alone.
        said = str(error.message).strip().partition("\n")[0]
        return TrackingRefused(f"MLflow at {self.uri} answers and refuses ({what}): {said}"[:500])
