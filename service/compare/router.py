"""GET /v1/experiments/{id}/comparison, as JSON, CSV, Markdown and picture."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from service.compare import report
from service.compare.plot import svg
from service.compare.schemas import Comparison
from service.compare.service import comparison_of
from service.errors import NotFound, responses

router = APIRouter(prefix="/v1/experiments/{experiment_id}", tags=["comparison"], responses=responses(NotFound))


def _comparison(request: Request, experiment_id: str) -> Comparison:
    state = request.app.state
    with state.db.read() as session:
        return comparison_of(session, experiment_id, state.settings.tracking_uri)


Found = Annotated[Comparison, Depends(_comparison)]


@router.get("/comparison")
def get_comparison(comparison: Found) -> Comparison:
    """The arms of an experiment against its baseline, finished or not; what is missing is shown as missing."""
    return comparison


@router.get("/comparison.md", response_class=Response, responses={200: {"content": {"text/markdown": {}}}})
def get_markdown(comparison: Found) -> Response:
    return Response(report.markdown(comparison), media_type="text/markdown; charset=utf-8")


@router.get("/comparison.csv", response_class=Response, responses={200: {"content": {"text/csv": {}}}})
def get_csv(comparison: Found) -> Response:
    return Response(report.comma_separated(comparison), media_type="text/csv; charset=utf-8")


@router.get("/comparison.svg", response_class=Response, responses={200: {"content": {"image/svg+xml": {}}}})
def get_plot(comparison: Found) -> Response:
    return Response(svg(comparison), media_type="image/svg+xml")
