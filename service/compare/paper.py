"""A report in one HTML file: it needs no other file and no network, and can be read back.

The last thing in it is a block of JSON with the spec and every number, which `mcf reproduce` reads.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import jinja2
import yaml
from markupsafe import Markup
from pydantic import ValidationError

from service.compare import figures
from service.compare.columns import Columns, interval, mean_and_sd, p_value, predicted_interval, signed, signed_interval
from service.compare.headline import headline
from service.schemas.comparison import Report
from service.text import first_line, short

SECURITY = {
    # Nothing is loaded and nothing runs, whatever people have named their arms.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
BLOCK = re.compile(r'<script type="application/json" id="mcf-report">(.*?)</script>', re.DOTALL)

_jinja = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
_jinja.filters |= {
    "short": short, "first_line": first_line, "interval": interval, "mean_and_sd": mean_and_sd, "p_value": p_value,
    "signed": signed, "signed_interval": signed_interval, "predicted_interval": predicted_interval,
}  # fmt: skip

REACHED = (
    "rank", "arm", "seeds", "mean and sd", "interval", "difference", "difference's interval", "p", "verdict",
)  # fmt: skip
FLOORS, COST = ("pixels", "untrained", "floors"), ("images", "hours", "restarts", "processes")


class NoReport(Exception):
    """The file is no report, or of another version."""


def html(report: Report, drawn: Mapping[str, str] | None = None) -> str:
    """The report; `drawn` are its figures as SVG, where they have been drawn already."""
    table = report.comparison
    if drawn is None:
        drawn = {name: figures.draw(table, name, "svg").decode() for name in figures.drawable(table)}
    columns = Columns(table)
    return _jinja.get_template("report.html").render(
        report=report,
        comparison=table,
        columns=columns,
        tables=[
            ("What the arms reached", [*REACHED, *columns.rounds]),
            ("Floors, sanity and cost", ["arm", *FLOORS, *columns.sanity, *COST, *columns.money, *columns.speed]),
        ],
        head=headline(table),
        figures=[(figures.CAPTIONS[name], Markup(_inline(svg))) for name, svg in drawn.items()],
        spec=yaml.safe_dump(report.spec, sort_keys=False, allow_unicode=True),
        # `</script>` in a name would end the block; in JSON, < may be written so.
        block=Markup(report.model_dump_json().replace("<", "\\u003c")),
    )


def read_back(text: str) -> Report:
    """Raises NoReport."""
    found = BLOCK.findall(text)
    if not found:
        raise NoReport("it has no block with id mcf-report, so it is not a report of mcf")
    try:
        return Report.model_validate_json(found[-1])
    except ValidationError as error:
        raise NoReport(
            f"its block cannot be read; another version may have written it: {first_line(str(error))}"
        ) from error


def _inline(svg: str) -> str:
    """An SVG file as an element of a page: no prologue, no metadata, no ids but those it refers to itself."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r'<g id="[^"]*"', "<g", svg)
