"""The API from Python: for notebooks, and for the `mcf` command.

    from service.client import Client

    frame = Client().submit("ablation.yaml").wait().comparison()

What goes wrong is a service.connection.McfError, in words for people.
"""

import importlib.util
import math
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from service import downloads, specfile
from service.compare.forms import Comparison
from service.connection import Ambiguous, McfError, NoSuchThing, Refused, ServiceAway, ServiceConnection, given
from service.downloads import DownloadFailed, Told, nobody
from service.schemas.audit import AuditList, AuditView
from service.schemas.experiments import ExperimentDetail, ExperimentList, ExperimentState, ExperimentSummary, Plan
from service.schemas.lookup import Found, Kind
from service.schemas.pools import PoolList, PoolView
from service.schemas.rebuild import Rebuilt
from service.schemas.retention import Deletion, JointDeletion, ProjectList, ProjectView, StoreCheck
from service.schemas.runs import Checkpoints, FileKind, Histories, RunDetail, RunFiles, RunList, RunSummary
from service.schemas.tokens import TokenCreated, TokenList, TokenView, Whoami
from service.schemas.webhooks import DeliveryList, DeliveryView, Tried, WebhookCreated, WebhookList, WebhookView
from service.states import Event, Form, Scope
from service.version import HEADER
from trainer.contract import asked_subset_seed, plain

if TYPE_CHECKING:
    import pandas

Detail = TypeVar("Detail", ExperimentDetail, RunDetail)

__all__ = [
    "Ambiguous",
    "Client",
    "Comparison",
    "DownloadFailed",
    "Experiment",
    "McfError",
    "NoSuchThing",
    "Refused",
    "ServiceAway",
]

# Submitting reads the data once, to name the runs by what they see.
SUBMIT_SECONDS = 600.0
WHOLE_ID = re.compile("e[0-9a-f]{10}|r[0-9a-f]{12,15}")
# What the service says of a name that does not mean one thing.
MEANT_WRONGLY = {"not_found": NoSuchThing, "ambiguous": Ambiguous}


class Client:
    """A connection to one service. Without a URL: MCF_URL, else the `mcf up` of this folder. Raises ServiceAway.

    A service of another version is told of once: to `warn`, else as a warning of class OtherVersion.
    """

    def __init__(
        self, url: str | None = None, token: str | None = None, *, timeout_seconds: float = 30.0,
        warn: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        self._connection = ServiceConnection(url, token, timeout_seconds, **given(warn=warn))
        self.url = self._connection.url

    def ping(self) -> None:
        """Raises ServiceAway unless somebody answers."""
        self._connection.call("GET", "/healthz")

    def service_version(self) -> str | None:
        """None where the service is of a release that did not tell it. Raises ServiceAway."""
        version: str | None = self._connection.call("GET", "/healthz").headers.get(HEADER)
        return version

    # ------------------------------------------------------------ experiments

    def submit(self, spec: Mapping[str, Any] | str | Path, *, project: str | None = None) -> "Experiment":
        """Submit a spec or a file with one, into a project or the token's own. Raises Refused, with every problem."""
        # The key makes it safe to ask again when an answer was lost on the way.
        options = _submission(spec, project=project) | {"headers": {"Idempotency-Key": uuid.uuid4().hex}}
        answer = self._connection.patiently(lambda: self._connection.call("POST", "/v1/experiments", **options))
        return Experiment(self, ExperimentDetail.model_validate_json(answer.content))

    def plan(self, spec: Mapping[str, Any] | str | Path, *, project: str | None = None) -> Plan:
        """What submitting would do; nothing is done."""
        options = _submission(spec, project=project, dry_run="true")
        answer = self._connection.call("POST", "/v1/experiments", **options)
        return Plan.model_validate_json(answer.content)

    def experiments(
        self, project: str | None = None, *, states: Sequence[ExperimentState] = (), search: str | None = None,
        prefix: str | None = None, deleted: bool = False,
    ) -> Iterator[ExperimentSummary]:  # fmt: skip
        """Experiments, newest first, of a project or all; in any of `states`; `search`: part of a name, or the
        beginning of an id; `prefix`: the beginning of an id; `deleted`: those that can be restored."""
        asked = {"project": project, "state": [state.value for state in states] or None, "search": search}
        asked |= {"prefix": prefix, "deleted": "true" if deleted else None}
        cursor: str | None = None
        while True:
            page = self._connection.get(ExperimentList, "/v1/experiments", limit=200, cursor=cursor, **asked)
            yield from page.experiments
            if (cursor := page.next_cursor) is None:
                return

    def experiment(self, name: str) -> "Experiment":
        """By id, by the beginning of one, or by name. Raises NoSuchThing, and Ambiguous where several are meant."""
        return Experiment(self, self._detail(ExperimentDetail, "/v1/experiments", name, Kind.EXPERIMENT))

    def look_up(self, name: str, kind: Kind | None = None) -> Found:
        """The experiment or run that the service takes this for; of one kind, or either. Raises as `experiment`."""
        try:
            return self._connection.get(Found, "/v1/lookup", name=name, kind=kind)
        except Refused as refused:
            if refused.error in MEANT_WRONGLY:
                raise MEANT_WRONGLY[refused.error](str(refused)) from refused
            raise

    def pools(self) -> list[PoolView]:
        """The cluster's node pools with what is free now; empty where attempts are processes of one machine."""
        return self._connection.get(PoolList, "/v1/pools").pools

    # ------------------------------------------------------------ tokens

    def whoami(self) -> Whoami:
        """What this client's token is good for."""
        return self._connection.get(Whoami, "/v1/whoami")

    def create_token(
        self, name: str, scope: Scope, *, project: str | None = None, expires_in_days: int | None = None
    ) -> TokenCreated:
        """A new token; its `secret` is shown this once."""
        wanted = {"name": name, "scope": scope, "project": project, "expires_in_days": expires_in_days}
        answer = self._connection.call("POST", "/v1/tokens", json=given(**wanted))
        return TokenCreated.model_validate_json(answer.content)

    def tokens(self, project: str | None = None) -> list[TokenView]:
        """Newest first, also those that are no longer good."""
        return self._connection.get(TokenList, "/v1/tokens", project=project).tokens

    def revoke_token(self, token_id: str) -> TokenView:
        return TokenView.model_validate_json(self._connection.call("DELETE", f"/v1/tokens/{token_id}").content)

    def audit(self, *, limit: int = 200, before: int | None = None, after: int | None = None) -> list[AuditView]:
        """Who asked for what, newest first; those `after` a number oldest first."""
        return self._connection.get(AuditList, "/v1/audit", limit=limit, before=before, after=after).entries

    # ------------------------------------------------------------ webhooks

    def create_webhook(
        self, url: str, *, project: str | None = None, events: Sequence[Event] | None = None,
        waits_longer_than_minutes: float | None = None, form: Form = Form.JSON,
    ) -> WebhookCreated:  # fmt: skip
        """An address that is told of experiments; the `secret` that signs it is shown this once."""
        more = given(project=project, events=events, waits_longer_than_minutes=waits_longer_than_minutes)
        answer = self._connection.call("POST", "/v1/webhooks", json={"url": url, "form": form, **more})
        return WebhookCreated.model_validate_json(answer.content)

    def webhooks(self, project: str | None = None) -> list[WebhookView]:
        """Newest first, also those that are switched off."""
        return self._connection.get(WebhookList, "/v1/webhooks", project=project).webhooks

    def delete_webhook(self, webhook_id: str) -> WebhookView:
        return WebhookView.model_validate_json(self._connection.call("DELETE", f"/v1/webhooks/{webhook_id}").content)

    def test_webhook(self, webhook_id: str) -> Tried:
        """Sends a test now; what the receiver said."""
        return Tried.model_validate_json(self._connection.call("POST", f"/v1/webhooks/{webhook_id}/test").content)

    def deliveries(self, webhook_id: str) -> list[DeliveryView]:
        """What it was told, newest first: the last 100."""
        return self._connection.get(DeliveryList, f"/v1/webhooks/{webhook_id}/deliveries").deliveries

    # ------------------------------------------------------------ retention and projects

    def deletion(self, experiment_ids: Sequence[str]) -> JointDeletion:
        """What deleting these together would free; runs that they share count once. Deletes nothing."""
        answer = self._connection.call(
            "GET", "/v1/deletion", params={"id": list(experiment_ids)}, timeout=SUBMIT_SECONDS
        )  # fmt: skip
        return JointDeletion.model_validate_json(answer.content)

    def restore(self, experiment_id: str) -> "Experiment":
        """Bring back a deleted experiment; `experiments(deleted=True)` are those that can be."""
        answer = self._connection.call("POST", f"/v1/experiments/{experiment_id}/restore")
        return Experiment(self, ExperimentDetail.model_validate_json(answer.content))

    def check_store(self) -> StoreCheck:
        """What takes room in the store, and what no run of this service has left there."""
        answer = self._connection.call("GET", "/v1/store", timeout=SUBMIT_SECONDS)
        return StoreCheck.model_validate_json(answer.content)

    def rebuild(self) -> Rebuilt:
        """Write the service's empty database anew from the store. Raises Refused where it is not empty."""
        answer = self._connection.call("POST", "/v1/rebuild", timeout=SUBMIT_SECONDS)
        return Rebuilt.model_validate_json(answer.content)

    def projects(self) -> list[ProjectView]:
        return self._connection.get(ProjectList, "/v1/projects").projects

    def set_limits(self, project: str, **limits: float | None) -> ProjectView:
        """Limits of a project, by the names of ProjectLimits; None takes one away."""
        answer = self._connection.call("PATCH", f"/v1/projects/{project}", json=limits)
        return ProjectView.model_validate_json(answer.content)

    # ------------------------------------------------------------ runs

    def runs(self, experiment: str | None = None, *, prefix: str | None = None) -> Iterator[RunSummary]:
        """Newest first, of one experiment (its id) or all, or with ids that begin so."""
        cursor: str | None = None
        while True:
            page = self._connection.get(
                RunList, "/v1/runs", limit=1000, cursor=cursor, experiment=experiment, prefix=prefix
            )
            yield from page.runs
            if (cursor := page.next_cursor) is None:
                return

    def run(self, name: str) -> RunDetail:
        """By id or by the beginning of one. Raises NoSuchThing, and Ambiguous where several are meant."""
        return self._detail(RunDetail, "/v1/runs", name, Kind.RUN)

    def _detail(self, model: type[Detail], address: str, name: str, kind: Kind) -> Detail:
        # Who gives a whole id is spared a question, and needs no service that answers it.
        if WHOLE_ID.fullmatch(name):
            try:
                return self._connection.get(model, f"{address}/{name}")
            except Refused as refused:
                if refused.error != "not_found":
                    raise
        return self._connection.get(model, f"{address}/{self.look_up(name, kind).id}")

    def files(self, run_id: str) -> RunFiles:
        """What can be fetched of a run, and why some of it is not there."""
        return self._connection.get(RunFiles, f"/v1/runs/{run_id}/files")

    def get_encoder(self, run: str, folder: str | Path | None = None, *, told: Told = nobody) -> Path:
        """Fetch the exported encoder of a run into a folder, RUN-encoder if none is named; timm loads it.

        Raises NoSuchThing where there is none yet, with why, DownloadFailed, and Refused if it goes away meanwhile.
        """
        found = self.files(self.look_up(run, Kind.RUN).id)
        return downloads.encoder(self._connection, found, Path(folder or f"{found.run_id}-encoder"), told)

    def get_checkpoint(
        self, run: str, file: str | Path | None = None, *, step: int | None = None, told: Told = nobody
    ) -> Path:
        """Fetch the newest checkpoint of a run, or that of a step; RUN-step-STEP.pt if no file or folder is named.

        Of a run that measures the weights of another, the other's. Raises as `get_encoder`.
        """
        found = self.files(self.look_up(run, Kind.RUN).id)
        if found.weights_of and (why := found.missing.get(FileKind.CHECKPOINT)):
            try:
                found = self.files(self.look_up(found.weights_of, Kind.RUN).id)
            except NoSuchThing as error:
                raise NoSuchThing(f"{why} {error}") from error
        target = Path(file) if file else None
        return downloads.single(self._connection, found, FileKind.CHECKPOINT, target, told, step=step)

    def get_result(self, run: str, file: str | Path | None = None, *, told: Told = nobody) -> Path:
        """Fetch the numbers of a finished run as JSON; RUN-result.json if none is named. Raises as `get_encoder`."""
        found = self.files(self.look_up(run, Kind.RUN).id)
        return downloads.single(self._connection, found, FileKind.RESULT, Path(file) if file else None, told)

    def act_on_run(self, run_id: str, action: str, *, experiment: str | None = None) -> RunDetail:
        """`cancel`, `pause`, `resume` or `retry` one run; `experiment`: for which of those that share it."""
        answer = self._connection.call("POST", f"/v1/runs/{run_id}/{action}", params=given(experiment=experiment))
        return RunDetail.model_validate_json(answer.content)

    def checkpoints(self, run_id: str) -> Checkpoints:
        return self._connection.get(Checkpoints, f"/v1/runs/{run_id}/checkpoints")

    def metrics(self, run_id: str) -> dict[str, list[tuple[int, float | None]]]:
        """Metric -> (step, value) in step order."""
        return self._connection.get(Histories, f"/v1/runs/{run_id}/metrics").metrics

    def picture(self, run_id: str) -> bytes:
        """Newest panel of images, masked images and reconstructions, as PNG."""
        return self._connection.call("GET", f"/v1/runs/{run_id}/picture").content

    def logs(self, run_id: str, *, tail: int | None = None) -> str:
        """What the run's nodes have printed so far; the last `tail` lines where given."""
        return self._connection.call("GET", f"/v1/runs/{run_id}/logs", params=given(tail=tail)).text

    def follow_logs(self, run_id: str) -> Iterator[str]:
        """Lines as they come, until the run has ended. Raises ServiceAway when the service goes before that."""
        for event, data in self._connection.events(f"/v1/runs/{run_id}/logs", follow="true"):
            if event == "end":
                return
            yield data
        raise ServiceAway(f"The service at {self.url} stopped sending the log of {run_id}; follow the log again.")


class Experiment:
    """A submitted experiment; `detail` is what was known of it when it was last looked at."""

    def __init__(self, client: Client, detail: ExperimentDetail) -> None:
        self._client, self._connection, self.detail = client, client._connection, detail

    def __repr__(self) -> str:
        return f"Experiment({self.id}, {self.detail.name!r}, {self.detail.state}, {self.detail.progress:.0%})"

    @property
    def id(self) -> str:
        return self.detail.id

    def refresh(self) -> ExperimentDetail:
        self.detail = self._connection.get(ExperimentDetail, f"/v1/experiments/{self.id}")
        return self.detail

    def wait(
        self,
        *,
        timeout_seconds: float | None = None,
        poll_seconds: float = 1.0,
        on_progress: Callable[[ExperimentDetail], None] = lambda detail: None,
    ) -> "Experiment":
        """Returns when every run has ended; calls `on_progress` at each look. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_seconds if timeout_seconds is not None else math.inf
        while True:
            on_progress(self._connection.patiently(self.refresh))
            if self.detail.state.is_final:
                return self
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{self.id} is at {self.detail.progress:.0%} after {timeout_seconds} s; it keeps running"
                )
            time.sleep(poll_seconds)

    def comparison(
        self, metric: str | None = None, *, at: int | None = None, forecast: int | None = None
    ) -> "pandas.DataFrame | Comparison":
        """The comparison as a DataFrame, for notebooks; as `table()` where pandas is not installed."""
        table = self.table(metric, at=at, forecast=forecast)
        return table.to_dataframe() if importlib.util.find_spec("pandas") else table

    def table(
        self, metric: str | None = None, *, at: int | None = None, forecast: int | None = None
    ) -> Comparison:  # fmt: skip
        """The comparison with everything the service says, ranked by this metric, or as the spec asks.

        `at`: as of this step of training, else of the end of the runs. `forecast`: images that arms are forecast at.
        Raises NoSuchThing where nothing was measured.
        """
        return self._connection.get(
            Comparison, f"/v1/experiments/{self.id}/comparison", metric=metric, at=at, forecast=forecast
        )

    def report(self) -> str:
        """Table, figures, spec and digests in one HTML file."""
        # Drawn while one waits.
        return self._connection.call("GET", f"/v1/experiments/{self.id}/report.html", timeout=SUBMIT_SECONDS).text

    def figure(self, name: str, form: str = "svg") -> bytes:
        """forest, factors, interactions, cost or forecast; as svg, png or pdf.

        Raises Refused where there is nothing to draw.
        """
        return self._connection.call("GET", f"/v1/experiments/{self.id}/figures/{name}.{form}").content

    def specs(self) -> dict[str, dict[str, Any]]:
        """Arm -> spec of the run of its first seed, with the digests of what it saw."""
        found = {}
        for arm in self.detail.arms:
            # Two of them tell which images the arm asks for; one that is shared may say it otherwise.
            specs = [self._client.run(trial.run_id).spec for trial in arm.trials[:2]]
            found[arm.name] = {**specs[0], "data": {**specs[0]["data"], "subset_seed": asked_subset_seed(specs)}}
        return found

    def runs(self) -> list[RunSummary]:
        return list(self._client.runs(self.id))

    def cancel(self, *, arms: Sequence[str] | None = None, runs: Sequence[str] | None = None) -> "Experiment":
        """Stop it, or the arms (by name) and runs (by id) that are named; each run writes a checkpoint first."""
        return self._act("cancel", json=_part(arms, runs))

    def pause(self, *, arms: Sequence[str] | None = None, runs: Sequence[str] | None = None) -> "Experiment":
        """Stop it, or what is named, until `resume`."""
        return self._act("pause", json=_part(arms, runs))

    def resume(self, *, arms: Sequence[str] | None = None, runs: Sequence[str] | None = None) -> "Experiment":
        return self._act("resume", json=_part(arms, runs))

    def retry(self, *, arms: Sequence[str] | None = None, runs: Sequence[str] | None = None) -> "Experiment":
        """Queue the failed runs again; of what is named also what was cancelled."""
        return self._act("retry", json=_part(arms, runs))

    def change(self, **changes: Any) -> "Experiment":
        """Other `priority`, `concurrency`, `gpu_hours` (None = no cap) or `pool` for what has not ended."""
        answer = self._connection.call("PATCH", f"/v1/experiments/{self.id}", json=changes)
        self.detail = ExperimentDetail.model_validate_json(answer.content)
        return self

    def delete(
        self, *, dry_run: bool = False, objects: bool = True, tracking: bool = False, undo_days: float | None = None
    ) -> Deletion:
        """Delete it, once it has ended; what others share stays. With `dry_run`: what that would do.

        `objects`: whether the directories of its runs go, `tracking`: whether their runs in MLflow do. Until `purge_at`
        of the answer `Client.restore` brings it back.
        """
        options = {"dry_run": dry_run, "objects": objects, "tracking": tracking}
        params = {name: str(value).lower() for name, value in options.items()} | given(undo_days=undo_days)
        # Every run's directory is listed, to say what it takes.
        answer = self._connection.call("DELETE", f"/v1/experiments/{self.id}", params=params, timeout=SUBMIT_SECONDS)
        return Deletion.model_validate_json(answer.content)

    def extend(
        self, *, seeds: int | Sequence[int] = (), factors: Mapping[str, Sequence[Any]] | None = None,
        evaluation: Mapping[str, Any] | None = None, gpu_hours: float | None = None,
    ) -> "Experiment":  # fmt: skip
        """Add seeds, levels of factors, or fields of `base.evaluation`. Raises Refused, with every problem."""
        more = {
            "seeds": seeds if isinstance(seeds, int) else list(seeds),
            "factors": {name: list(levels) for name, levels in (factors or {}).items()},
            "evaluation": dict(evaluation or {}),
        }
        # Read again, to name the new runs by what they see.
        return self._act("extend", json=_sendable(more | given(gpu_hours=gpu_hours)), timeout=SUBMIT_SECONDS)

    def _act(self, verb: str, **options: Any) -> "Experiment":
        answer = self._connection.call("POST", f"/v1/experiments/{self.id}/{verb}", **options)
        self.detail = ExperimentDetail.model_validate_json(answer.content)
        return self


def _part(arms: Sequence[str] | None, runs: Sequence[str] | None) -> dict[str, list[str]]:
    asked = {name: list(some) for name, some in (("arms", arms), ("runs", runs)) if some is not None}
    if asked and not any(asked.values()):
        raise McfError("No arm and no run is named. For the whole experiment leave out arms and runs.")
    return {name: some for name, some in asked.items() if some}


def _submission(spec: Mapping[str, Any] | str | Path, **params: Any) -> dict[str, Any]:
    return {"json": _payload(spec), "params": given(**params), "timeout": SUBMIT_SECONDS}


def _payload(spec: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    if isinstance(spec, Mapping):
        return specfile.with_absolute_paths(_sendable(spec), Path.cwd())
    try:
        return specfile.read(Path(spec))
    except specfile.UnreadableSpec as error:
        raise McfError(str(error)) from error


def _sendable(data: Mapping[str, Any]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = plain.as_json(dict(data))
    except plain.NotPlain as error:
        raise McfError(f"This cannot be sent: {error}") from error
    return found
