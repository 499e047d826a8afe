"""Requests and the reconciler write the same rows at the same time, and never wait for each other in a circle."""

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from service.errors import AlreadyEnded, NotExtendable, NothingToRetry
from service.experiments import actions
from service.experiments.extend import Extension, extend
from tests.unit.service.bench import Bench
from trainer.weights.sources import FILES_ONLY

ROUNDS = 25


def test_whatever_is_asked_for_at_the_same_time_is_done(bench: Bench, spec: dict[str, Any]) -> None:
    made = [bench.submit(spec | {"name": f"e{number}"}) for number in range(3)]
    faults: list[BaseException] = []
    rng = random.Random(3)

    def asking() -> None:
        for _ in range(ROUNDS):
            with suppress(AlreadyEnded, NothingToRetry, NotExtendable):
                rng.choice([again, cancel, retry, more])(rng.choice(made))

    def again(experiment: str) -> None:
        made.append(bench.submit(spec | {"name": "again"}))

    def cancel(experiment: str) -> None:
        actions.cancel(bench.db, experiment)

    def retry(experiment: str) -> None:
        actions.retry(bench.db, bench.settings, experiment)

    def more(experiment: str) -> None:
        extend(bench.db, experiment, Extension(seeds=rng.randint(2, 4)), FILES_ONLY, None)

    def looking() -> None:
        for _ in range(2 * ROUNDS):
            names = bench.cluster.live()
            for name in names[:2]:
                bench.cluster.train(name, 1)
                bench.reconciler.hear(name)
            for name in names[2:4]:
                bench.cluster.end(name)
            bench.clock.now += timedelta(seconds=2)
            bench.reconciler.tick()
            bench.reconciler.drain()

    def noting(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=noting, args=[work]) for work in [*[asking] * 4, looking]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults[0]
