"""The answer of an experiment as MLflow shows it above the run: the page's headline and the top of the table."""

from collections.abc import Iterator

from service.compare import plaintext
from service.compare.columns import Columns
from service.compare.headline import headline
from service.schemas.comparison import Comparison

COLUMNS = ("rank", "arm", "seeds", "mean", "interval", "difference", "difference's interval", "p", "verdict", "hours")
MAX_ROWS = 10
# Of a tag: MLflow takes 8000 characters, older servers 5000.
MAX_LENGTH = 5000


def note(table: Comparison, model: str, runs: str) -> str:
    """In Markdown, with as many arms as there is room for.

    `model`: the registered model that has the encoders. `runs`: where MLflow shows the runs, the best first.
    """
    texts = (
        "\n\n".join("\n".join(part) for part in _parts(table, model, runs, arms)) for arms in range(MAX_ROWS, -1, -1)
    )
    return next((text for text in texts if len(text) <= MAX_LENGTH), headline(table).answer)


def _parts(table: Comparison, model: str, runs: str, arms: int) -> Iterator[list[str]]:
    head = headline(table)
    if head.best_arm:
        # In one paragraph, as MLflow shows the first lines alone.
        lead, rest = head.best_arm
        yield [f"**{lead}** {rest} [All runs, the best first]({runs})."]
        yield [f"**Is the difference real? {head.answer}.** {head.why}"]
        if head.cautions:
            yield [f"* {caution}" for caution in head.cautions]
    else:
        yield [f"**{head.answer}.** {head.why} [All runs]({runs})."]
    shown = [*table.arms[:arms], *(row for row in table.arms[arms:] if row.is_baseline and arms)]
    if shown:
        columns = Columns(table)
        yield plaintext.rows(columns.choose(*COLUMNS, *columns.rounds), shown)
    if left := len(table.arms) - len(shown):
        yield [f"And {left} more."]
    yield [
        "The artifact `report.html` has every arm, the factors, the figures, and what it takes to reproduce this. "
        f"Encoders: `models:/{model}@best`, and an alias for each arm."
    ]
