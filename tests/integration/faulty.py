"""A trainer with an error of its own after the last step: tests.integration.faulty --spec FILE"""

from collections.abc import Sequence
from typing import Any

import trainer.main


def conclude(*arguments: Any) -> None:
    raise ValueError("the numbers do not add up")


def main(argv: Sequence[str] | None = None) -> int:
    trainer.main.conclude = conclude
    return trainer.main.main(argv)
