"""A short form of `python -m tests.fuzz`, with a seed that stays."""

from pathlib import Path

import pytest

from tests.fuzz.__main__ import fuzz
from tests.postgres import NoPostgres, running_postgres


def test_whatever_is_sent_no_answer_is_a_fault_of_the_service(tmp_path: Path) -> None:
    try:
        with running_postgres() as database:
            verdict = fuzz(600, 18, database, tmp_path, slow_seconds=30)
    except NoPostgres as error:
        pytest.skip(str(error))
    assert verdict.wrong == {}
    assert verdict.answers[201] > 0
    assert verdict.answers[422] > 100
