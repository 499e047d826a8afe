"""GET /v1/experiments/{id}/comparison in every form, its figures, and the report that holds them all."""

from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from service.api.refusals import responses
from service.compare import figures, paper, plaintext
from service.compare.latex import latex
from service.compare.plot import svg
from service.compare.service import Comparisons, report_of
from service.compare.table import Question
from service.costs import prices_of
from service.errors import NotFound, NothingToDraw
from service.schemas.comparison import Comparison
from trainer.contract.frozen import MAX_INTEGER

router = APIRouter(prefix="/v1/experiments/{experiment_id}", tags=["comparison"], responses=responses(NotFound))


Asked = Annotated[
    str | None, Query(description="Rank by this, such as alignment/nme_diag; else by evaluation.rank_by, or the probe.")
]


At = Annotated[int | None, Query(ge=0, description="The table as of this step of training; else of its end.")]
Size = Annotated[
    int | None,
    Query(ge=1, le=MAX_INTEGER, description="Forecast the arms at so many images; else at `forecast` of the spec."),
]


def _comparison(
    request: Request, experiment_id: str, metric: Asked = None, at: At = None, forecast: Size = None
) -> Comparison:
    kept: Comparisons = request.app.state.comparisons
    with request.app.state.db.read() as session:
        return kept.of(session, experiment_id, Question(metric, at, forecast))


def _answers(kinds: Iterable[str]) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: which media types it answers with."""
    return {200: {"content": {kind: {} for kind in kinds}}}


Found = Annotated[Comparison, Depends(_comparison)]


@router.get("/comparison")
def get_comparison(comparison: Found) -> Comparison:
    """The arms of an experiment against its baseline, finished or not; what is missing is shown as missing."""
    return comparison


@router.get("/comparison.md", response_class=Response, responses=_answers(["text/markdown"]))
def get_markdown(comparison: Found) -> Response:
    return Response(plaintext.markdown(comparison), media_type="text/markdown; charset=utf-8")


@router.get("/comparison.csv", response_class=Response, responses=_answers(["text/csv"]))
def get_csv(comparison: Found) -> Response:
    return Response(plaintext.comma_separated(comparison), media_type="text/csv; charset=utf-8")


@router.get("/comparison.svg", response_class=Response, responses=_answers(["image/svg+xml"]))
def get_plot(comparison: Found) -> Response:
    return Response(svg(comparison), media_type="image/svg+xml")


@router.get("/comparison.tex", response_class=Response, responses=_answers(["application/x-tex"]))
def get_latex(comparison: Found) -> Response:
    """A table for booktabs."""
    return Response(latex(comparison), media_type="application/x-tex; charset=utf-8")


@router.get(
    "/figures/{name}.{form}",
    response_class=Response,
    responses=_answers(figures.FORMS.values()) | responses(NothingToDraw),
)
def get_figure(comparison: Found, name: str, form: str) -> Response:
    """A figure for a paper: forest, factors, interactions, cost or forecast, as svg, png or pdf."""
    if name not in figures.FIGURES or form not in figures.FORMS:
        names, forms = ", ".join(figures.FIGURES), ", ".join(figures.FORMS)
        raise NotFound(f"{name}.{form} was asked for. The figures are {names}; each comes as {forms}.")
    try:
        return Response(figures.draw(comparison, name, form), media_type=figures.FORMS[form])
    except figures.Undrawable as error:
        raise NothingToDraw(str(error)) from error


@router.get("/report.html", response_class=Response, responses=_answers(["text/html"]))
def get_report(request: Request, experiment_id: str) -> Response:
    """Everything in one file: table, figures, spec, digests, and the same again for programs."""
    state = request.app.state
    with state.db.read() as session:
        found = report_of(session, experiment_id, state.settings.tracking_uri, prices_of(state.settings))
    return Response(paper.html(found), media_type="text/html; charset=utf-8", headers=paper.SECURITY)
