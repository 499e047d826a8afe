"""Seeds in rounds keep the error rate they promise, and save what they promise: thousands of simulated experiments.

The experiments are drawn and tested here by arrays, and a sample of them by the product itself, arm for arm.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache

import numpy as np
import pytest
from scipy.special import ndtr, ndtri, stdtr

from service.compare.levels import levels
from service.compare.rounds import Course, InRounds, Look
from service.compare.sequential import Outcome
from trainer.contract.rounds import Rounds, Spending, Target

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EXPERIMENTS = 20_000
# A rate of 0.05 is seen as more than this in one of 740.
MOST_ERROR = 0.05 + 3 * (0.05 * 0.95 / EXPERIMENTS) ** 0.5
LOOKS = (4, 8, 12)


@cache
def right(looks: tuple[int, ...], comparisons: int, spending: Spending = Spending.LINEAR) -> list[float]:
    return levels(looks, [count / looks[-1] for count in looks], spending, 0.05 / comparisons)


def peeking(looks: tuple[int, ...], comparisons: int) -> list[float]:
    """A t test at each look, as if it were the only one."""
    return [0.05 / comparisons] * len(looks)


def without_holm(looks: tuple[int, ...], comparisons: int) -> list[float]:
    return right(looks, 1)


def normal(looks: tuple[int, ...], comparisons: int) -> list[float]:
    """The levels of normal theory for looks at quarters: those of 60, 120, 180 and 240 seeds."""
    assert (len(looks), comparisons) == (4, 1)
    return [0.0125, 0.015916, 0.020081, 0.024529]


Values = np.ndarray
"""Experiments x arms x seeds, the baseline first."""


@dataclass
class Found:
    error: float
    """Share of experiments in which an arm is shown that does not differ."""
    power: float
    """Share of the arms that differ that are shown."""
    used: float
    """Runs, as a share of all seeds of all arms."""
    shown: np.ndarray = field(repr=False)
    seeds: np.ndarray = field(repr=False)
    """Of each arm."""


def draw(
    effects: Sequence[float], seeds: int = 12, *, correlation: float = 0.0, heavy: bool = False,
    count: int = EXPERIMENTS, number: int = 0,
) -> Values:  # fmt: skip
    """Runs of standard deviation 1, of which each seed has a part in common to all arms."""
    random = np.random.default_rng(number)

    def noise(*shape: int) -> np.ndarray:
        return random.standard_t(5, shape) / (5 / 3) ** 0.5 if heavy else random.standard_normal(shape)

    own, common = noise(count, len(effects) + 1, seeds), noise(count, 1, seeds)
    return own * (1 - correlation) ** 0.5 + common * correlation**0.5 + np.array([0, *effects])[None, :, None]


def sequential(
    values: Values, effects: Sequence[float], looks: tuple[int, ...] = LOOKS, *,
    futility: float = 0.0, at: Callable[[tuple[int, ...], int], list[float]] = right,
) -> Found:  # fmt: skip
    """Arms against the baseline. futility: arms whose predictive power is below it stop; 0 = it is ignored."""
    differences = values[:, 1:] - values[:, :1]
    count, arms, _ = differences.shape
    level = np.array([[0.0] * len(looks), *(at(looks, left) for left in range(1, arms + 1))])
    shown, on = np.zeros((count, arms), bool), np.ones((count, arms), bool)
    p, seeds = np.ones((count, arms)), np.zeros((count, arms + 1), int)
    reached = np.zeros((count, arms), int)
    for number, n in enumerate(looks):
        seeds[:, 1:][on], seeds[:, 0] = n, np.where(on.any(1), n, seeds[:, 0])
        now = differences[:, :, :n]
        t = now.mean(2) / now.std(2, ddof=1) * n**0.5
        p, reached = np.where(on, 2 * stdtr(n - 1, -abs(t)), p), np.where(on, number, reached)
        while True:
            left = (~shown).sum(1)
            new = ~shown & (p <= level[left[:, None], reached])
            if not new.any():
                break
            shown |= new
        on &= ~shown
        if futility and n < looks[-1]:
            share = n / looks[-1]
            needed = -ndtri(level[(~shown).sum(1), -1] / 2)[:, None]
            on &= ndtr((-ndtri(p / 2) / share**0.5 - needed) * (share / (1 - share)) ** 0.5) >= futility
    null = np.array(effects) == 0
    return Found(
        error=float(shown[:, null].any(1).mean()), power=float(shown[:, ~null].mean()) if not null.all() else 0.0,
        used=float(seeds.mean() / looks[-1]), shown=shown, seeds=seeds,
    )  # fmt: skip


@pytest.mark.parametrize("arms", [1, 3, 7])
@pytest.mark.parametrize("correlation", [0.0, 0.7])
@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("futility", [0.0, 0.1])
def test_where_nothing_differs_an_arm_is_shown_in_one_of_twenty_experiments(
    arms: int, correlation: float, heavy: bool, futility: float
) -> None:
    effects = [0.0] * arms
    found = sequential(draw(effects, correlation=correlation, heavy=heavy), effects, futility=futility)
    assert found.error <= MOST_ERROR


@pytest.mark.parametrize("looks", [(3, 6, 9, 12), (4, 8, 12)])
@pytest.mark.parametrize("spending", list(Spending))
def test_the_error_rate_is_that_over_all_looks_whatever_they_are(looks: tuple[int, ...], spending: Spending) -> None:
    effects = [0.0, 0.0, 2.0]
    found = sequential(draw(effects), effects, looks, at=lambda looks, left: right(looks, left, spending))
    assert found.error <= MOST_ERROR


@pytest.mark.parametrize(("wrong", "arms"), [(peeking, 1), (without_holm, 3), (normal, 1)])
def test_a_wrong_boundary_is_found_out(wrong: Callable[[tuple[int, ...], int], list[float]], arms: int) -> None:
    effects = [0.0] * arms
    found = sequential(draw(effects), effects, (3, 6, 9, 12), at=wrong)
    assert found.error > MOST_ERROR


@pytest.mark.parametrize(("effect", "most"), [(3.0, 0.60), (2.0, 0.75)])
def test_what_differs_is_found_with_fewer_runs(effect: float, most: float) -> None:
    effects = [effect] * 3
    values = draw(effects)
    fixed, found = sequential(values, effects, (12,)), sequential(values, effects, futility=0.1)
    assert found.used <= most
    assert found.power >= fixed.power - 0.03


def test_where_nothing_differs_arms_are_given_up() -> None:
    effects = [0.0] * 3
    assert sequential(draw(effects), effects, futility=0.1).used <= 0.65


# ---------------------------------------------------------------- the product itself


def course(values: Values, design: Rounds, looks: Sequence[Look] = ()) -> Course:
    """One experiment; values: arms x seeds."""
    arms = {f"arm{index}": dict(enumerate(row)) for index, row in enumerate(values.tolist())}
    return Course(InRounds(design, looks), arms, "arm0", higher_is_better=True)


def run(values: Values, design: Rounds, failed: Sequence[tuple[str, int]] = ()) -> Course:
    """As the reconciler does it: a round, a look, and the next round for those that go on."""
    names = [f"arm{index}" for index in range(len(values))]
    seeds = dict.fromkeys(names, design.rounds[0])
    looks: list[Look] = []
    on = frozenset(names)
    for number in range(len(design.rounds)):
        seeds |= dict.fromkeys(on, design.rounds[number])
        finished = {
            name: frozenset(seed for seed in range(count) if (name, seed) not in failed)
            for name, count in seeds.items()
        }
        looks.append(Look(NOW, finished, frozenset()))
        on = frozenset(course(values, design, looks).going_on(on))
        looks[-1] = replace(looks[-1], on=on)
        if not on:
            break
    return course(values, design, looks)


@pytest.mark.parametrize("futility", [0.0, 0.1])
@pytest.mark.parametrize("effects", [[0.0, 0.0, 0.0], [3.0, 1.0, 0.0, 2.0, 0.0]])
def test_the_product_decides_what_the_simulation_decides(effects: list[float], futility: float) -> None:
    values = draw(effects, count=150, number=5)
    found = sequential(values, effects, futility=futility)
    design = Rounds(rounds=LOOKS, futility=futility)
    for one, shown, seeds in zip(values, found.shown, found.seeds, strict=True):
        made = run(one, design)
        assert [outcome.shown_at is not None for outcome in made.outcomes.values()] == shown.tolist()
        given = [len(made.rounds.looks[-1].seeds(name)) for name in made.arms]
        assert given == seeds.tolist()


def test_a_verdict_and_its_interval_and_its_p_never_disagree() -> None:
    effects = [0.0, 1.0, 1.5, 2.0]
    for one in draw(effects, count=200, number=6):
        made = run(one, Rounds(rounds=LOOKS))
        for number in range(1, len(made.rounds.looks) + 1):
            seen = course(one, made.rounds.design, made.rounds.looks[:number])
            for outcome in seen.outcomes.values():
                summary = outcome.found.summary
                assert summary.low is not None
                assert summary.high is not None
                holds_zero = summary.low <= 0 <= summary.high
                assert (outcome.shown_at is None) == holds_zero == ((outcome.p or 0) > 0.05)


def test_what_was_decided_stays_decided() -> None:
    for one in draw([1.5, 1.5, 0.0], count=200, number=7):
        made = run(one, Rounds(rounds=LOOKS))
        before: dict[tuple[str, str], Outcome] = {}
        for number in range(1, len(made.rounds.looks) + 1):
            now = course(one, made.rounds.design, made.rounds.looks[:number]).outcomes
            for pair, outcome in before.items():
                if outcome.shown_at is not None:
                    assert now[pair].shown_at == outcome.shown_at
                    assert now[pair].found == outcome.found
            before = now


def test_an_interval_holds_the_truth_whenever_one_stops() -> None:
    effects = [0.0, 6.0, 6.0]
    experiments = 600
    held = np.zeros(3)
    for one in draw(effects, count=experiments, number=8):
        intervals = [outcome.found.summary for outcome in run(one, Rounds(rounds=LOOKS)).outcomes.values()]
        held += [
            (found.low or 0) <= effect <= (found.high or 0) for found, effect in zip(intervals, effects, strict=True)
        ]
    assert (held / experiments >= 0.95 - 3 * (0.05 * 0.95 / experiments) ** 0.5).all()


def test_a_look_with_a_seed_less_spends_less_and_the_last_one_all() -> None:
    [one] = draw([0.0, 0.0], count=1, number=9)
    design = Rounds(rounds=LOOKS, futility=0.0)
    made = run(one, design, failed=[("arm1", 2), ("arm1", 10)])
    assert not any(outcome.shown_at for outcome in made.outcomes.values())
    outcome = made.outcomes["arm1", "arm0"]
    assert outcome.found.summary.n == 10
    [expected] = levels((3, 7, 10), (0.25, 7 / 12, 1.0), Spending.LINEAR, 0.05 / 2)[-1:]
    assert outcome.level == pytest.approx(expected)
    whole = made.outcomes["arm2", "arm0"]
    assert whole.level == pytest.approx(right(LOOKS, 2)[-1])


def test_an_arm_of_which_nothing_finishes_gets_no_more_and_without_the_baseline_nothing_is_decided() -> None:
    [one] = draw([0.5, 0.5], count=1, number=10)
    design = Rounds(rounds=LOOKS, futility=0.0)
    lost = run(one, design, failed=[("arm1", seed) for seed in range(4)])
    assert [len(look.on) for look in lost.rounds.looks] == [2, 2, 0]
    assert "arm1" not in lost.rounds.looks[0].on
    gone = run(one, design, failed=[("arm0", seed) for seed in range(4)])
    assert [look.on for look in gone.rounds.looks] == [frozenset()]


def test_the_same_difference_at_every_seed_is_never_shown() -> None:
    values = np.tile(np.arange(12.0), (3, 1)) + np.array([[0.0], [1.0], [0.0]])
    made = run(values, Rounds(rounds=LOOKS))
    shifted, same = made.outcomes["arm1", "arm0"], made.outcomes["arm2", "arm0"]
    assert (shifted.shown_at, shifted.level, shifted.found.summary.n) == (None, None, 12)
    assert (same.shown_at, same.found.p) == (None, 1.0)


# ---------------------------------------------------------------- which arm is best?


def test_arms_worse_than_another_are_dropped_until_one_is_left() -> None:
    effects = [3.0, 5.0, 1.0]
    alone, used = 0, 0
    for one in draw(effects, count=100, number=11):
        made = run(one, Rounds(rounds=LOOKS, target=Target.BEST))
        left = [name for name in made.arms if name not in made.dropped]
        alone += left == ["arm2"]
        used += sum(len(made.rounds.looks[-1].seeds(name)) for name in made.arms)
        assert set(made.dropped.values()) <= set(made.arms)
    assert alone >= 85
    assert used <= 0.8 * 100 * 4 * 12


def test_the_best_arms_are_not_given_up_while_others_may_still_be_told_apart() -> None:
    design = Rounds(rounds=LOOKS, target=Target.BEST)
    for one in draw([0.0, 2.0, 2.0], count=200, number=13):
        made = run(one, design)
        for number, look in enumerate(made.rounds.looks[:-1], 1):
            seen = course(one, design, made.rounds.looks[:number])
            left = {name for name in seen.arms if name not in seen.dropped}
            # All that may be the best, or nobody.
            assert look.on == left


def test_of_equal_arms_one_is_said_to_be_worse_in_one_of_twenty_experiments() -> None:
    count = 1_000
    wrong = sum(
        bool(run(one, Rounds(rounds=LOOKS, target=Target.BEST, futility=0.0)).dropped)
        for one in draw([0.0, 0.0], count=count, number=12)
    )
    assert wrong / count <= 0.05 + 3 * (0.05 * 0.95 / count) ** 0.5


def test_every_pair_is_tested_and_the_baseline_is_what_is_subtracted() -> None:
    [one] = draw([1.0, 2.0], count=1)
    made = run(one, Rounds(rounds=LOOKS, target=Target.BEST))
    assert {frozenset(pair) for pair in made.outcomes} == {
        frozenset(pair) for pair in itertools.combinations(["arm0", "arm1", "arm2"], 2)
    }
    assert all(pair[0] != "arm0" for pair in made.outcomes)
