r"""The comparison as a LaTeX table: \input it into a paper that loads booktabs. What people wrote is escaped."""

from collections.abc import Sequence

from service.compare import round_words
from service.compare.columns import Column, Columns, predicted_interval
from service.compare.words import count_states
from service.schemas.comparison import ArmRow, Comparison

SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "[": "{[}", "\n": " ", "\r": " ", "\t": " ",
}  # fmt: skip
MARKS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
"""Holm-adjusted p below -> mark."""
RANKED = "mean and sd"
COLUMNS = ("arm", "seeds", RANKED, "interval", "difference", "p", "hours")


def latex(table: Comparison) -> str:
    """A `table` environment: the best mean bold, the second underlined, the marks explained beneath."""
    columns = Columns(table)
    chosen = columns.choose(*COLUMNS)
    arrow = {True: r" $\uparrow$", False: r" $\downarrow$"}[table.metric.higher_is_better] if table.metric else ""
    header = [_heading(column) + (arrow if column is columns[RANKED] else "") for column in chosen]
    lines = [
        f"% {table.experiment_id}, {table.made_at:%Y-%m-%d}: \\usepackage{{booktabs}}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(table.title)}}}",
        rf"\label{{tab:{table.name}}}",  # a name has lower-case letters, digits and hyphens
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        _line(header),
        r"\midrule",
        *(_line([_set(name, columns[name].cell(row), row) for name in COLUMNS]) for row in table.arms),
        r"\bottomrule",
        r"\end{tabular}",
        "",
        r"\smallskip",
        rf"\parbox{{\linewidth}}{{\footnotesize {' '.join(_notes(table))}}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    return "".join(SPECIAL.get(letter, letter) for letter in text)


def _heading(column: Column) -> str:
    return escape(column.heading).replace(r"95 \%", r"95\,\%").replace("p (", "$p$ (")


def _set(name: str, text: str, row: ArmRow) -> str:
    """A cell in LaTeX's type, with what a paper's table marks: the two best means, and what the test has shown."""
    if name == RANKED:
        mean, _, sd = text.partition(" \N{PLUS-MINUS SIGN} ")
        # Only the mean: the spread is not what is best.
        mean = {1: rf"\textbf{{{mean}}}", 2: rf"\underline{{{mean}}}"}.get(row.rank or 0, mean)
        return rf"{mean} $\pm$ {sd}" if sd else mean
    if name == "difference" and text and not row.is_baseline:
        mark = _mark(row)
        return f"${text}{f'^{{{mark}}}' if mark else ''}$"
    if name == "p" and row.difference and row.difference.p_holm is not None and row.difference.p_holm < MARKS[0][0]:
        return f"$<${MARKS[0][0]}"
    return escape(text)


def _mark(row: ArmRow) -> str:
    p = row.difference.p_holm if row.difference else None
    return next((mark for bound, mark in MARKS if p is not None and p < bound), "")


def _notes(table: Comparison) -> list[str]:
    unit = "Mean $\\pm$ standard deviation over seeds; intervals of means are Student's $t$."
    notes = [unit] if table.metric else []
    if table.metric and table.metric.name.startswith("sanity/"):
        notes.append(f"{escape(table.metric.note)}.")
    if any(row.difference for row in table.arms):
        notes.append(f"To baseline: the difference to {escape(table.baseline)}, paired over seeds.")
        marks = ", ".join(f"${{}}^{{{mark}}}\\,p<{bound}$" for bound, mark in reversed(MARKS))
        if table.rounds:
            notes.append(f"{marks}. {escape(round_words.method(table.rounds))}")
            notes += [escape(f"{row.name}: {row.rounds.words}.") for row in table.arms if row.rounds]
        else:
            notes.append(
                f"{marks} in a paired $t$ test, Holm-adjusted over the arms; fewer than three seeds are not tested."
            )
    if table.metric:
        notes.append("Best mean in bold, second underlined.")
    for row in table.arms:
        if row.missing:
            notes.append(f"{escape(row.name)}: {count_states(row.missing)}, not in the mean.")
    if floors := [row.floors for row in table.arms if row.floors]:
        pixels, random = _range([floor.pixels for floor in floors]), _range([floor.random_encoder for floor in floors])
        notes.append(f"Floors: {pixels} on raw pixels, {random} with the untrained encoder.")
    notes += [escape(sentence) for sentence in _forecast(table)]
    below = [escape(row.name) for row in table.arms if row.floors and not row.floors.above]
    if below:
        notes.append(f"Not shown to be better than both floors: {'; '.join(below)}.")
    return notes or ["No run has finished."]


def _forecast(table: Comparison) -> list[str]:
    found = table.forecast
    if found is None:
        return []
    return [
        f"Forecast with {found.size:,} images: {arm.name} {arm.at_size.value:.4g} ({predicted_interval(arm.at_size)})."
        for arm in found.arms
        if arm.at_size
    ]


def _range(values: Sequence[float]) -> str:
    low, high = _number(min(values)), _number(max(values))
    return low if low == high else f"{low} to {high}"


def _number(value: float | None) -> str:
    return "" if value is None else escape(f"{value:.4g}")


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
