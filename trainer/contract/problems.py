"""What is wrong with a request, every problem at once. Pydantic only."""

from trainer.contract.frozen import Frozen


class Problem(Frozen):
    """One thing that is wrong with a request: which field, what was asked, what is possible."""

    field: str
    asked: str
    possible: str
    arms: tuple[str, ...] = ()
    """Arms it concerns; empty = all of them."""

    def __str__(self) -> str:
        more = f" and {len(self.arms) - 3} more arms" if len(self.arms) > 3 else ""
        where = f" (in {'; '.join(self.arms[:3])}{more})" if self.arms else ""
        return f"{self.field}: asked for {self.asked}; possible: {self.possible}{where}"


class SpecError(ValueError):
    """A request that cannot be run, with everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems
