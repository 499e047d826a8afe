r"""The comparison as a LaTeX table: \input it into a paper that loads booktabs. What people wrote is escaped."""

from collections.abc import Sequence

from service.compare.words import count_states
from service.schemas.comparison import ArmRow, Comparison, Estimate

SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "[": "{[}", "\n": " ", "\r": " ", "\t": " ",
}  # fmt: skip
MARKS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
"""Holm-adjusted p below -> mark."""


def latex(table: Comparison) -> str:
    """A `table` environment: the best mean bold, the second underlined, the marks explained beneath."""
    metric = f"{table.metric.name} ({table.metric.unit})" if table.metric else "probe"
    arrow = {True: r" $\uparrow$", False: r" $\downarrow$"}[table.metric.higher_is_better] if table.metric else ""
    header = ["arm", "$n$", f"{escape(metric)}{arrow}", r"95\,\% interval", r"$\Delta$ to baseline", "$p$ (Holm)"]
    header += [table.hours]
    lines = [
        f"% {table.experiment_id}, {table.made_at:%Y-%m-%d}: \\usepackage{{booktabs}}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(table.name)}}}",
        rf"\label{{tab:{table.name}}}",  # a name has lower-case letters, digits and hyphens
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        _line(header),
        r"\midrule",
        *(_line(_cells(row)) for row in table.arms),
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


def _cells(row: ArmRow) -> list[str]:
    difference = row.difference
    p = difference.p_holm if difference else None
    return [
        escape(row.name),
        f"{row.seeds - len(row.missing)}/{row.seeds}" if row.missing else str(row.seeds),
        _mean(row),
        f"{_number(row.probe.low)} to {_number(row.probe.high)}" if row.probe and row.probe.low is not None else "",
        "baseline" if row.is_baseline else _difference(difference, p),
        "" if p is None else r"$<$0.001" if p < 0.001 else f"{p:.3f}",
        f"{row.gpu_hours:.2f}",
    ]


def _mean(row: ArmRow) -> str:
    if not row.probe or row.probe.mean is None:
        return ""
    # Only the mean: the spread is not what is best.
    mean = _number(row.probe.mean)
    mean = {1: rf"\textbf{{{mean}}}", 2: rf"\underline{{{mean}}}"}.get(row.rank or 0, mean)
    return mean if row.probe.sd is None else rf"{mean} $\pm$ {row.probe.sd:.2g}"


def _difference(found: Estimate | None, p: float | None) -> str:
    if found is None or found.mean is None:
        return ""
    mark = next((mark for bound, mark in MARKS if p is not None and p < bound), "")
    return f"${found.mean:+.3g}{f'^{{{mark}}}' if mark else ''}$"


def _notes(table: Comparison) -> list[str]:
    unit = "Mean $\\pm$ standard deviation over seeds; intervals are Student's $t$."
    notes = [unit] if table.metric else []
    if any(row.difference for row in table.arms):
        notes.append(rf"$\Delta$: paired over seeds with the baseline ({escape(table.baseline)}).")
        marks = ", ".join(f"${{}}^{{{mark}}}\\,p<{bound}$" for bound, mark in reversed(MARKS))
        notes.append(f"{marks} in a paired $t$ test, Holm-adjusted over the arms; below three seeds nothing is tested.")
    if table.metric:
        notes.append("Best mean in bold, second underlined.")
    for row in table.arms:
        if row.missing:
            notes.append(f"{escape(row.name)}: {count_states(row.missing)}, in no mean.")
    if floors := [row.floors for row in table.arms if row.floors]:
        pixels, random = _range([floor.pixels for floor in floors]), _range([floor.random_encoder for floor in floors])
        notes.append(f"Floors: {pixels} on raw pixels, {random} with the untrained encoder.")
    below = [escape(row.name) for row in table.arms if row.floors and not row.floors.above]
    if below:
        notes.append(f"Not shown to be above both floors: {'; '.join(below)}.")
    return notes or ["No run has finished."]


def _range(values: Sequence[float]) -> str:
    low, high = _number(min(values)), _number(max(values))
    return low if low == high else f"{low} to {high}"


def _number(value: float | None) -> str:
    return "" if value is None else escape(f"{value:.4g}")


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
