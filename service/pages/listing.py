"""The page of all experiments: how far each is and what came out, cut down to what one looks for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response

from service.api import cursors
from service.api.auth import Reader
from service.api.cursors import Cursor
from service.errors import NotFound
from service.experiments import repository, views
from service.experiments.search import Search, projects
from service.pages.render import PageRoute, page, polled
from service.schemas.experiments import ExperimentState
from service.states import Scope

router = APIRouter(route_class=PageRoute, include_in_schema=False)

NUM_EXPERIMENTS = 50
MAX_WORDS = 200


@dataclass(frozen=True)
class Asked:
    """What the page was asked to show, as it stands in its address."""

    search: str
    states: tuple[ExperimentState, ...]
    project: str

    @property
    def is_something(self) -> bool:
        return bool(self.search or self.states or self.project)

    def address(self, cursor: str | None = None) -> str:
        asked = [("search", self.search), *(("state", state.value) for state in self.states), ("project", self.project)]
        given = [(name, value) for name, value in [*asked, ("cursor", cursor)] if value]
        return f"/?{urlencode(given)}" if given else "/"


@router.get("/")
@polled
def index(
    request: Request,
    principal: Reader,
    search: str = "",
    states: Annotated[Sequence[str], Query(alias="state")] = (),
    project: str = "",
    cursor: Cursor = None,
) -> Response:
    """The parameters are those of GET /v1/experiments; a form sends those that are empty, too."""
    state = request.app.state
    asked = Asked(search.strip()[:MAX_WORDS], _states(states), project.replace("\0", ""))
    conditions = Search(principal.within(asked.project or None), asked.states, asked.search).conditions()
    with state.db.read() as session:
        found = repository.page(session, NUM_EXPERIMENTS + 1, cursors.position(cursor), conditions)
        shown = views.summaries(session, found[:NUM_EXPERIMENTS], state.settings)
        answers = state.answers.known(session, [item.id for item in shown])
        known_projects = projects(session) if principal.project is None else []
    older = cursors.after(found[NUM_EXPERIMENTS - 1]) if len(found) > NUM_EXPERIMENTS else None
    return page(
        "index.html", experiments=shown, answers_known=answers, asked=asked, here=asked.address(cursor),
        older=asked.address(older) if older else None, is_older=cursor is not None, projects=known_projects,
        states=list(ExperimentState), may_submit=principal.scope.includes(Scope.SUBMIT),
        is_admin=principal.scope.includes(Scope.ADMIN),
        tracking_uri=state.settings.tracking_uri,
    )  # fmt: skip


@router.get("/experiments/{experiment_id}/answer")
@polled
def answer(request: Request, experiment_id: str) -> Response:
    """Of one experiment, asked for by its row: to compare its arms takes time, and most rows are never looked at."""
    state = request.app.state
    with state.db.read() as session:
        return page("answer.html", answer=state.answers.of(session, experiment_id), id=experiment_id)


def _states(asked: Sequence[str]) -> tuple[ExperimentState, ...]:
    """Raises NotFound."""
    if wrong := [name for name in asked if name and name not in list(ExperimentState)]:
        raise NotFound(f"state: {wrong[0][:40]!r} was asked for; possible: {', '.join(ExperimentState)}.")
    return tuple(ExperimentState(name) for name in dict.fromkeys(asked) if name)
