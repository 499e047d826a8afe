"""A trainer whose rank 0 takes its time before the first step: tests.integration.slow_start --spec FILE"""

import time
from collections.abc import Sequence
from typing import Any

import trainer.main

SECONDS = 15.0
painter = trainer.main.painter


def slow_painter(*arguments: Any) -> Any:
    time.sleep(SECONDS)
    return painter(*arguments)


def main(argv: Sequence[str] | None = None) -> int:
    trainer.main.painter = slow_painter
    return trainer.main.main(argv)
