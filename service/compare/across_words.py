"""What two experiments side by side say in sentences, for the terminal and the page."""

from service.compare.across import Across
from service.compare.ranking import in_words, kind
from service.text import metric_name

NOTHING_IN_COMMON = "No arm of one has the spec or the levels of an arm of the other."


def words(found: Across) -> list[str]:
    """What the numbers are of, and which arms have nothing beside them."""
    one, other = (f"{item.name} ({item.experiment_id})" for item in (found.one, found.other))
    unit = f"{metric_name(found.metric.name)} ({found.metric.unit})" if found.metric else ""
    told = [f"{unit}: second minus first." if unit else why_not(found)]
    for pair in found.pairs:
        if pair.differs:
            fields = "; ".join(f"{field} {was} there, {now} here" for field, (was, now) in pair.differs.items())
            told.append(f"{pair.one} has the same levels in both, but another spec: {fields}.")
    told += [f"Only in {one}: {'; '.join(found.only_one)}."] if found.only_one else []
    told += [f"Only in {other}: {'; '.join(found.only_other)}."] if found.only_other else []
    return told


def why_not(found: Across) -> str:
    """Why no values stand side by side."""
    told = (in_words(kind(item.metric)) if item.metric else "nothing" for item in (found.one, found.other))
    return (
        f"No numbers stand side by side: one was measured by {' and the other by '.join(told)}. Only numbers of the "
        "same metric, benchmark, images and annotations can be subtracted."
    )
