"""What goes into a paper: the LaTeX table, the figures, the report."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from service.compare import figures, paper
from service.compare.latex import SPECIAL, escape, latex
from service.compare.table import ArmTrials, compare
from service.schemas.comparison import Digest, Report
from service.states import RunState
from tests.unit.service.test_compare import NOW, arm, table, trial
from tests.unit.service.test_factors import grid, messy

NASTY = '50% & a_b #1 {x} $y$ ~^\\ </script><b>|"[z]"'
VOID = {"meta", "br", "hr", "img", "link", "input"}


def report(**changes: Any) -> Report:
    fields: dict[str, Any] = {
        "spec": {"name": "t", "base": {"preset": "tiny"}, "factors": {"a": ["x", NASTY]}, "share": True},
        "comparison": grid(messy),
        "digests": [Digest(what="teacher", name="t.pt", sha256="a" * 64)],
        "software": {"mcf": "0.1.0"},
    }
    return Report(**(fields | changes))


def test_every_row_has_as_many_cells_as_the_table_has_columns_whatever_arms_are_called() -> None:
    text = latex(
        table(arm("base", 5.0, 5.1, 5.2, baseline=True), arm(NASTY, 4.0, 4.11, 4.2), arm("x", 6.0, None, None))
    )
    [columns] = re.findall(r"\\begin\{tabular\}\{(l+r+)\}", text)
    body = text.partition("\\toprule")[2].partition("\\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1, row
    for opened in re.findall(r"\\begin\{(\w+)\}", text):
        assert text.count(f"\\begin{{{opened}}}") == text.count(f"\\end{{{opened}}}") == 1
    unescaped = re.sub(r"\\[{}%&#$_]", "", text)
    assert unescaped.count("{") == unescaped.count("}")
    assert unescaped.count("$") % 2 == 0
    assert unescaped.count("%") == 1  # the comment at the head
    assert "x: 2 failed, not in the mean." in text


def test_no_special_letter_comes_through_unescaped() -> None:
    for letter, written in SPECIAL.items():
        assert escape(f"a{letter}b") == f"a{written}b"
    assert escape(r"\input{secret}") == r"\textbackslash{}input\{secret\}"


def test_the_best_is_bold_the_second_underlined_and_marks_follow_the_adjusted_p() -> None:
    made = table(arm("base", 5.0, 5.1, 5.2, baseline=True), arm("good", 4.0, 4.11, 4.2), arm("odd", 5.3, 5.2, 5.0))
    text = latex(made)
    assert re.search(r"^good & 3 & \\textbf\{4\.103\}", text, re.MULTILINE)
    assert re.search(r"^base & 3 & \\underline\{5\.1\} .* baseline & ", text, re.MULTILINE)
    p = {row.name: row.difference.p_holm for row in made.arms if row.difference}
    assert p["good"] is not None
    assert 0.0 < p["good"] < 0.001
    assert "$-0.997^{***}$ & $<$0.001" in text
    assert "^{*" not in next(line for line in text.splitlines() if line.startswith("odd"))
    assert "p<0.05" in text


@pytest.mark.parametrize("form", figures.FORMS)
@pytest.mark.parametrize("name", [name for name in figures.FIGURES if name != "forecast"])  # test_forecast.py
def test_the_same_comparison_is_drawn_the_same_again(name: str, form: str) -> None:
    made = grid(messy)
    first = figures.draw(made, name, form)
    assert first.startswith({"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[form])
    # What was drawn before, and when, is not in the file.
    figures.draw(grid(messy, seeds=3), "cost", "svg")
    assert figures.draw(made, name, form) == first
    if form == "svg":
        text = " ".join(ElementTree.fromstring(first).itertext())
        assert {"forest": "a=z b=1", "factors": "lower is better", "interactions": "z", "cost": "process-hours"}[
            name
        ] in text


def test_figures_are_drawn_of_names_with_dollars_and_of_what_is_half_done() -> None:
    nasty = table(arm("base", 5.0, 5.1, baseline=True), arm(NASTY, 4.0, None), arm("none", None, None))
    for name in figures.drawable(nasty):
        assert ElementTree.fromstring(figures.draw(nasty, name, "svg")) is not None
    assert figures.drawable(nasty) == ["forest", "factors", "cost"]


def test_what_cannot_be_drawn_says_why() -> None:
    one = grid(messy, b="1")
    with pytest.raises(figures.Undrawable, match="two factors or more"):
        figures.draw(one, "interactions", "svg")
    nothing = table(arm("base", None, None, baseline=True, state=RunState.QUEUED))
    assert figures.drawable(nothing) == []
    many = [arm(f"m{n}", 1.0 + n, baseline=n == 0) for n in range(figures.MAX_ARMS + 1)]
    with pytest.raises(figures.Undrawable, match="101 arms"):
        figures.draw(compare("e1", "t", many, NOW), "forest", "svg")


def test_a_start_of_the_service_does_not_load_matplotlib() -> None:
    code = "import service.app, sys; print('matplotlib' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


class Elements(HTMLParser):
    """Opened elements with their attributes; fails where one is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def loads(self) -> Iterator[str]:
        for _, attributes in self.found:
            for name in "src", "href", "xlink:href":
                if value := attributes.get(name):
                    yield value


def test_a_report_needs_no_other_file_and_runs_nothing() -> None:
    text = paper.html(report())
    page = Elements(text)
    assert "@import" not in text
    assert [a for tag, a in page.found if tag == "script"] == [{"type": "application/json", "id": "mcf-report"}]
    assert len([tag for tag, _ in page.found if tag == "svg"]) == 4
    ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(ids) == len(set(ids)), "a figure would refer to a part of another"
    assert {*page.loads(), *re.findall(r"url\((.*?)\)", text)} <= {f"#{id}" for id in ids}
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_a_report_reads_back_to_what_it_was_made_of_whatever_arms_are_called() -> None:
    values = [ArmTrials(name, {"a": name}, name == "x", [trial(n, 4.0 + n) for n in range(3)]) for name in ("x", NASTY)]
    made = report(comparison=compare("e1", "t", values, NOW))
    text = paper.html(made)
    Elements(text)
    assert "<b>" not in text
    assert paper.read_back(text) == made
    assert json.loads(paper.BLOCK.findall(text)[0])["spec"]["factors"]["a"][1] == NASTY
    for wrong in "<html></html>", '<script type="application/json" id="mcf-report">{}</script>':
        with pytest.raises(paper.NoReport):
            paper.read_back(wrong)


def test_a_report_says_what_the_numbers_are_of() -> None:
    text = paper.html(report())
    for told in "a" * 64, "t.pt", "mcf 0.1.0", "preset: tiny", "a=z b=2", *report().comparison.words[:1]:
        assert told in text
    unfinished = paper.html(report(comparison=table(arm("base", 5.0, None, baseline=True), arm("other", None, None))))
    assert "not every run has finished" in unfinished
    assert "other, seed 0 (r0): failed, why not" in unfinished
