"""Effects of factors, their interactions and the seeds that are missing to show something, against other formulas."""

import itertools
import json
import math
import statistics
from collections.abc import Callable, Mapping

import pytest
from scipy import stats as reference
from scipy.integrate import quad

from service.compare import plaintext
from service.compare.stats import MOST_SEEDS, against_zero, more_seeds, paired, power
from service.compare.table import ArmTrials, compare
from service.schemas.comparison import Comparison, Contrast, Effect
from service.states import RunState
from tests.unit.service.test_compare import NOW, trial

Value = Callable[[str, str, int], float | None]


def noise(*place: object) -> float:
    """The same for the same place, without a pattern."""
    return (hash_of(json.dumps(place)) % 1000) / 1000


def hash_of(text: str) -> int:
    found = 7
    for letter in text:
        found = (found * 131 + ord(letter)) % 1_000_003
    return found


def grid(value: Value, seeds: int = 5, a: str = "xyz", b: str = "12") -> Comparison:
    """Arms of factors a and b; the baseline is x, 1."""
    arms = []
    for level, other in itertools.product(a, b):
        trials = []
        for seed in range(seeds):
            found = value(level, other, seed)
            state = RunState.SUCCEEDED if found is not None else RunState.FAILED
            trials.append(trial(seed, found, state=state))
        arms.append(ArmTrials(f"a={level} b={other}", {"a": level, "b": other}, (level, other) == ("x", "1"), trials))
    return compare("e1", "t", arms, NOW)


def effects(made: Comparison) -> dict[tuple[str, str], Effect]:
    return {(f.name, level.level): level.effect for f in made.factors for level in f.levels if level.effect}


def contrasts(made: Comparison) -> Mapping[tuple[str, str], Contrast]:
    [pair] = made.interactions
    return {(contrast.level, contrast.other_level): contrast for contrast in pair.contrasts}


def messy(level: str, other: str, seed: int) -> float:
    return 5.0 + {"x": 0.0, "y": 0.5, "z": -1.0}[level] + (0.3 if other == "2" else 0.0) + noise(level, other, seed)


def test_an_effect_is_the_paired_t_test_of_the_seeds_means_over_the_other_factor() -> None:
    found = effects(grid(messy))
    assert set(found) == {("a", "y"), ("a", "z"), ("b", "2")}
    mean_of = {
        (name, level): [
            statistics.fmean(messy(*(place if name == "a" else place[::-1]), seed) for place in places)  # type: ignore[misc]
            for seed in range(5)
        ]
        for name, level, places in [
            *(("a", level, [(level, "1"), (level, "2")]) for level in "xyz"),
            *(("b", level, [(level, "x"), (level, "y"), (level, "z")]) for level in "12"),
        ]
    }
    raw = {}
    for (name, level), effect in found.items():
        told = reference.ttest_rel(mean_of[name, level], mean_of[name, "x" if name == "a" else "1"])
        interval = told.confidence_interval(0.95)
        assert (effect.n, effect.missing_pairs) == (5, 0)
        assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
        assert effect.p == pytest.approx(told.pvalue, abs=1e-9)
        raw[name, level] = told.pvalue
    # Holm over the three effects of the whole table, not factor by factor.
    smallest = min(raw, key=raw.__getitem__)
    assert found[smallest].p_holm == pytest.approx(3 * raw[smallest], abs=1e-9)


def test_seeds_are_the_unit_however_many_cells_a_factor_is_averaged_over() -> None:
    made = grid(messy, a="xyz", b="12")
    assert {effect.n for effect in effects(made).values()} == {5}
    assert {level.estimate.n for factor in made.factors for level in factor.levels} == {5}


def test_a_missing_run_takes_its_pair_out_of_the_effect_and_its_seed_out_of_the_mean_and_is_told() -> None:
    made = grid(lambda level, other, seed: None if (level, other, seed) == ("y", "2", 3) else messy(level, other, seed))
    effect = effects(made)["a", "y"]
    assert (effect.n, effect.pairs, effect.missing_pairs) == (5, 9, 1)
    by_seed = [
        statistics.fmean(messy("y", b, seed) - messy("x", b, seed) for b in ("1", "2") if (b, seed) != ("2", 3))
        for seed in range(5)
    ]
    assert effect.mean == pytest.approx(statistics.fmean(by_seed), abs=1e-12)
    [y] = [level for level in made.factors[0].levels if level.level == "y"]
    assert y.estimate.n == 4
    assert contrasts(made)["y", "2"].n == 4
    assert any("2 of 35 pairs" in word for word in made.words), made.words


def test_what_only_adds_up_is_no_interaction_and_what_does_not_is() -> None:
    def both(level: str, other: str, seed: int) -> float:
        return messy(level, other, seed) + (20.0 if (level, other) == ("z", "2") else 0.0)

    found = contrasts(grid(both))
    by_hand = [(both("z", "2", s) - both("x", "2", s)) - (both("z", "1", s) - both("x", "1", s)) for s in range(5)]
    told = reference.ttest_1samp(by_hand, 0.0)
    interval = told.confidence_interval(0.95)
    z = found["z", "2"]
    assert (z.low, z.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert z.p_holm == pytest.approx(2 * told.pvalue, abs=1e-9)
    assert (z.verdict, found["y", "2"].verdict) == ("interaction shown", "no interaction shown")
    assert any("depends on the other" in word and "a=z with b=2" in word for word in grid(both).words)
    assert "a with b:" in plaintext.markdown(grid(both))


def test_with_one_factor_the_arms_say_it_all() -> None:
    made = grid(messy, b="1")
    assert [factor.name for factor in made.factors] == ["a"]
    assert made.interactions == []
    assert not any("other factors" in word for word in made.words)
    arms = {row.levels["a"]: row.difference for row in made.arms}
    for (_, level), effect in effects(made).items():
        assert arms[level]
        assert (effect.mean, effect.p_holm) == pytest.approx((arms[level].mean, arms[level].p_holm))  # type: ignore[union-attr]


def power_by_integration(effect: float, n: int, alpha: float) -> float:
    """t = (z + shift) / sqrt(v / df), z normal and v chi-square: over all v, the chance that |t| is over the bound."""
    df, shift, normal = n - 1, abs(effect) * math.sqrt(n), statistics.NormalDist()
    bound = reference.t.ppf(1 - alpha / 2, df)

    def over(v: float) -> float:
        edge = bound * math.sqrt(v / df)
        density = math.exp((df / 2 - 1) * math.log(v) - v / 2 - df / 2 * math.log(2) - math.lgamma(df / 2))
        return density * (normal.cdf(shift - edge) + normal.cdf(-edge - shift))

    middle, spread = float(df), math.sqrt(2 * df)
    edges = [1e-12, max(0.01, middle - 6 * spread), middle, middle + 8 * spread, middle + 60 * spread]
    return sum(quad(over, low, high, epsabs=1e-11)[0] for low, high in itertools.pairwise(edges))


def test_power_is_the_published_value_and_the_integral_it_stands_for() -> None:
    # Paired t, d = 0.5, two-sided 0.05: G*Power gives n = 34 with a power of 0.8077775.
    assert power(0.5, 34, 0.05) == pytest.approx(0.8077775, abs=1e-6)
    assert power(0.5, 33, 0.05) < 0.8
    for effect, n, alpha in (0.5, 10, 0.05), (1.3, 5, 0.01), (-0.8, 12, 0.025), (0.1, 400, 0.05), (2.5, 3, 0.05 / 7):
        assert power(effect, n, alpha) == pytest.approx(power_by_integration(effect, n, alpha), abs=1e-6)


def test_seeds_to_add_are_the_fewest_that_reach_the_power_at_holms_level() -> None:
    found = against_zero([0.2, -0.4, 0.9, 0.5])
    count = more_seeds(found, 4)
    assert found.summary.mean
    assert found.summary.sd
    assert count
    effect = found.summary.mean / found.summary.sd
    assert power(effect, 4 + count, 0.05 / 4) >= 0.8 > power(effect, 4 + count - 1, 0.05 / 4)
    assert more_seeds(against_zero([10.0, 10.1, 9.9]), 1) == 0
    assert more_seeds(against_zero([0.5, -0.5, 0.3, -0.3]), 1) == MOST_SEEDS
    assert more_seeds(against_zero([1.0, 2.0]), 1) is None
    assert more_seeds(paired({0: 2.0, 1: 2.0, 2: 2.0}, {0: 1.0, 1: 1.0, 2: 1.0}), 1) is None


def test_the_words_say_how_many_seeds_an_undecided_arm_lacks() -> None:
    made = grid(messy, b="1", seeds=3)
    undecided = {row.name: row.difference.more_seeds for row in made.arms if row.difference}  # type: ignore[union-attr]
    [word] = [word for word in made.words if word.startswith("Seeds to add")]
    for name, count in undecided.items():
        assert f"{name}: {count:,}" in word
