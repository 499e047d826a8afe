"""Seeds in rounds: after each, the arms that are decided get no more. Pydantic only; the test is service/compare."""

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from trainer.contract.frozen import MAX_INTEGER, Asked

# A t test over fewer pairs says nothing, and a service solves for the levels of so many.
FEWEST, MOST, MOST_LOOKS = 3, 50, 10
# The p of many differences takes time with the cube of their number (service/compare/sequential.py).
MOST_ARMS = {"baseline": 60, "best": 10}
EXAMPLE = "{rounds: [4, 8, 12]}"
POSSIBLE = {
    "rounds": f"a list of two to {MOST_LOOKS} numbers of seeds from {FEWEST} to {MOST}, each larger than the last",
    "first": f"a seed from 0 to {MAX_INTEGER - MOST}",
    "spending": "linear, or obrien-fleming",
    "target": "baseline, or best",
    "futility": "a number from 0 to below 1",
}


class Spending(StrEnum):
    """How much of the 5 % error is spent by a look at the share t of the seeds."""

    LINEAR = "linear"
    """5 % x t: the most early decisions."""
    OBRIEN_FLEMING = "obrien-fleming"
    """Almost nothing at first: the most power at the last look."""


class Target(StrEnum):
    BASELINE = "baseline"
    """Which arms differ from the baseline?"""
    BEST = "best"
    """Which arm is best? Every arm is tested against every other."""


class Rounds(Asked):
    """Seeds in rounds: arms are tested after each, and those that are decided or have little chance to be get no more
    seeds. The error over all looks together is 5 %."""

    rounds: tuple[Annotated[int, Field(strict=True)], ...]
    """Seeds that an arm has after each round, such as [4, 8, 12]."""
    first: int = Field(0, ge=0, le=MAX_INTEGER - MOST, strict=True)
    """The first seed; the others follow it."""
    spending: Spending = Spending.LINEAR
    """How the error is spent over the looks: `linear`, or `obrien-fleming`, which decides later and has more power."""
    target: Target = Target.BASELINE
    """What is asked: which arms differ from the `baseline`, or which arm is `best`."""
    futility: float = Field(0.1, ge=0, lt=1)
    """An arm whose chance to be decided at the last look is below this gets no more seeds. 0: only decided arms stop.
    The error holds in either case."""

    @model_validator(mode="after")
    def _grow(self) -> Self:
        grows = all(before < after for before, after in zip(self.rounds, self.rounds[1:], strict=False))
        if not 2 <= len(self.rounds) <= MOST_LOOKS or self.rounds[0] < FEWEST or self.rounds[-1] > MOST or not grows:
            raise ValueError(POSSIBLE["rounds"])
        return self

    @property
    def most(self) -> int:
        """Seeds of an arm that goes on to the end."""
        return self.rounds[-1]

    @property
    def seed_list(self) -> list[int]:
        return list(range(self.first, self.first + self.most))

    def seeds_of(self, number: int) -> list[int]:
        """Seeds that the round of that number adds; the first is 1."""
        before = self.rounds[number - 2] if number > 1 else 0
        return self.seed_list[before : self.rounds[number - 1]]

    def round_of(self, seed: int) -> int:
        """Number of the round that adds this seed."""
        return 1 + sum(seed - self.first >= count for count in self.rounds)


def asked_for(value: Any) -> Rounds:
    """Raises ValueError with every problem in a sentence: a part of a union has no place of its own to report at."""
    try:
        return Rounds.model_validate(value)
    except ValidationError as error:
        told = dict.fromkeys(map(_in_words, error.errors()))
        raise ValueError(f"{'; '.join(told)}, such as {EXAMPLE}") from None


def _in_words(item: Any) -> str:
    field = str(item["loc"][0]) if item["loc"] else "rounds"
    if item["type"] == "extra_forbidden":
        return f"the fields {', '.join(Rounds.model_fields)} alone, and not {field}"
    return f"{field}: {POSSIBLE[field]}"
