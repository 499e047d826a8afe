"""The page of two experiments side by side: what `mcf compare ONE OTHER` shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from service.api.auth import Principal, Reader
from service.compare.across import Across, ArmPair
from service.compare.across_words import NOTHING_IN_COMMON, words
from service.compare.columns import mean, signed, signed_interval
from service.compare.headline import headline
from service.compare.service import across_of
from service.errors import Ambiguous, NotFound
from service.experiments import repository
from service.experiments.lookup import look_up
from service.experiments.search import Search
from service.pages.render import PageRoute, page
from service.schemas.lookup import Kind

router = APIRouter(route_class=PageRoute, prefix="/compare", include_in_schema=False)

NUM_OFFERED = 50
"""Experiments that the fields offer: the newest."""


@dataclass(frozen=True)
class Row:
    arm: str
    cells: list[str]


@router.get("")
def compare(
    request: Request,
    principal: Reader,
    one: str = "",
    other: str = "",
    picked: Annotated[Sequence[str], Query(alias="id")] = (),
    metric: str = "",
) -> Response:
    """`id`: what was picked in the list, in its order: the newest first."""
    if len(picked) == 2:
        return RedirectResponse(f"/compare?{urlencode({'one': picked[1], 'other': picked[0]})}", status_code=303)
    state, one, other = request.app.state, one.strip(), other.strip()
    problem, status = "", 200
    found: Across | None = None
    with state.db.read() as session:
        offered = repository.page(session, NUM_OFFERED, None, Search(principal.project).conditions())
        try:
            if picked:
                one = picked[0]
                raise NotFound(f"Two experiments stand side by side, and {len(picked)} were picked.")
            if one and other:
                one, other = (_meant(request, principal, name) for name in (one, other))
                if one == other:
                    raise NotFound(f"{one} was asked for twice. Choose another experiment to stand beside it.")
                found = across_of(session, state.comparisons, one, other, metric or None)
        except (NotFound, Ambiguous) as error:
            problem, status = error.detail, error.status
    return page(
        "compare.html", status, one=one, other=other, metric=metric, problem=problem, offered=offered,
        found=found, rows=[_row(pair) for pair in found.pairs] if found else [], words=words(found) if found else [],
        heads=[headline(table) for table in (found.one, found.other)] if found else [], nothing=NOTHING_IN_COMMON,
    )  # fmt: skip


def _meant(request: Request, principal: Principal, name: str) -> str:
    """Its id. Raises NotFound, Ambiguous. Names that are no part of the path are not seen to by service.api.auth."""
    state = request.app.state
    return look_up(state.db, state.settings, name, (Kind.EXPERIMENT,), project=principal.project).id


def _row(pair: ArmPair) -> Row:
    name = pair.one if pair.one == pair.other else f"{pair.one} and {pair.other}"
    return Row(
        name,
        [
            mean(pair.probe), mean(pair.other_probe), signed(pair.unpaired), signed_interval(pair.unpaired),
            signed(pair.paired), str(pair.paired.n) if pair.paired else "", signed_interval(pair.paired),
            f"{pair.same_runs} shared" if pair.same_runs else "",
        ],
    )  # fmt: skip
