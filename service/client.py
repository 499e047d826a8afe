"""The API from Python: for notebooks, and for the `mcf` command.

    from service.client import Client

    frame = Client().submit("ablation.yaml").wait().comparison()

What goes wrong is a service.connection.McfError, in words for people.
"""

import importlib.util
import io
import math
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service import specfile
from service.compare import plaintext
from service.connection import McfError, NoSuchThing, Refused, ServiceAway, ServiceConnection, given
from service.schemas import comparison as schemas
from service.schemas.experiments import ExperimentDetail, ExperimentList, ExperimentState, ExperimentSummary, Plan
from service.schemas.pools import PoolList, PoolView
from service.schemas.runs import Checkpoints, Histories, RunDetail, RunList, RunSummary
from service.schemas.tokens import TokenCreated, TokenList, TokenView, Whoami
from service.states import Scope
from trainer.contract import asked_subset_seed, plain

if TYPE_CHECKING:
    import pandas

__all__ = ["Client", "Comparison", "Experiment", "McfError", "NoSuchThing", "Refused", "ServiceAway"]

# Submitting reads the data once, to name the runs by what they see.
SUBMIT_SECONDS = 600.0
# Of several that are meant, so many are named.
SHOWN = 4


class Comparison(schemas.Comparison):
    """The comparison as the service made it, with the forms people want it in."""

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row an arm, numbers in full; `attrs["words"]` is what may be said about them. Needs pandas."""
        import pandas

        frame = pandas.read_csv(io.StringIO(self.to_csv())).set_index("arm")
        frame.attrs["words"] = self.words
        return frame

    def to_csv(self) -> str:
        return plaintext.comma_separated(self)

    def to_markdown(self) -> str:
        return plaintext.markdown(self)

    def to_latex(self) -> str:
        """A table for booktabs."""
        from service.compare.latex import latex  # loads scipy: two seconds that most commands need not spend

        return latex(self)

    def _repr_markdown_(self) -> str:
        return self.to_markdown()


class Client:
    """A connection to one service. Without a URL: MCF_URL, else the `mcf up` of this folder. Raises ServiceAway."""

    def __init__(self, url: str | None = None, token: str | None = None, *, timeout_seconds: float = 30.0) -> None:
        self._connection = ServiceConnection(url, token, timeout_seconds)
        self.url = self._connection.url

    def ping(self) -> None:
        """Raises ServiceAway unless somebody answers."""
        self._connection.call("GET", "/healthz")

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
        self, project: str | None = None, *, states: Sequence[ExperimentState] = (), search: str | None = None
    ) -> Iterator[ExperimentSummary]:  # fmt: skip
        """Experiments, newest first, of a project or all; in any of `states`; `search`: part of a name, or the
        beginning of an id."""
        asked = {"project": project, "state": [state.value for state in states] or None, "search": search}
        cursor: str | None = None
        while True:
            page = self._connection.get(ExperimentList, "/v1/experiments", limit=200, cursor=cursor, **asked)
            yield from page.experiments
            if (cursor := page.next_cursor) is None:
                return

    def experiment(self, name: str) -> "Experiment":
        """By id, by the beginning of one, or by name: the newest of that name, if they are all of one project.

        Raises NoSuchThing.
        """
        # What is asked for is looked for here, too: a service of an older version tells of all there are.
        same_name = [item for item in self._experiments_with(name=name) if item.name == name]
        if len(projects := sorted({item.project for item in same_name})) > 1:
            some = ", ".join(f"{item.id} ({item.project})" for item in same_name[:SHOWN])
            raise NoSuchThing(
                f"Experiments of several projects ({', '.join(projects)}) are called {name!r}: {some}. Give an id."
            )
        ids = [item.id for item in self._experiments_with(prefix=name)] if not same_name else []
        found = same_name[0].id if same_name else _only(name, ids, "experiment", "mcf list")
        return Experiment(self, self._connection.get(ExperimentDetail, f"/v1/experiments/{found}"))

    def _experiments_with(self, **what: str) -> list[ExperimentSummary]:
        return self._connection.get(ExperimentList, "/v1/experiments", limit=200, **what).experiments

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

    # ------------------------------------------------------------ runs

    def runs(self, experiment: str | None = None) -> Iterator[RunSummary]:
        """Newest first, of one experiment (its id) or all."""
        cursor: str | None = None
        while True:
            page = self._connection.get(RunList, "/v1/runs", limit=1000, cursor=cursor, experiment=experiment)
            yield from page.runs
            if (cursor := page.next_cursor) is None:
                return

    def run(self, name: str) -> RunDetail:
        """By id or by the beginning of one. Raises NoSuchThing."""
        if not re.fullmatch("r[0-9a-f]{12}", name):
            found = self._connection.get(RunList, "/v1/runs", limit=SHOWN + 1, prefix=name).runs
            name = _only(name, [run.id for run in found], "run", "mcf show EXPERIMENT")
        return self._connection.get(RunDetail, f"/v1/runs/{name}")

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

    def cancel(self) -> "Experiment":
        return self._act("cancel")

    def retry(self) -> "Experiment":
        """Queue the failed runs again."""
        return self._act("retry")

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


def _only(name: str, ids: Sequence[str], kind: str, lister: str) -> str:
    found = [id for id in ids if id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise NoSuchThing(f"Several {kind}s begin with {name!r}: {', '.join(found[:SHOWN])} ... Give more of the id.")
    raise NoSuchThing(f"There is no {kind} {name!r}. `{lister}` lists all {kind}s.")


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
