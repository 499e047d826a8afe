"""What is kept of comparisons is never old."""

from typing import Any

from service.compare.service import Comparisons, comparison_of, report_of
from service.experiments import actions
from service.experiments.extend import Extension, extend
from service.schemas.comparison import Comparison
from tests.unit.service.bench import Bench, counting_statements
from trainer.weights.sources import FILES_ONLY


def test_a_kept_comparison_is_the_one_that_would_be_made_now(bench: Bench, spec: dict[str, Any]) -> None:
    kept, experiment = Comparisons(None), bench.submit(spec)

    def same() -> Comparison:
        with bench.db.read() as session:
            found, made = kept.of(session, experiment), comparison_of(session, experiment, None)
        assert found.model_copy(update={"made_at": made.made_at}) == made
        return found

    seen = [same()]
    for round in range(12):
        names = bench.cluster.live()
        for name in names[:1]:
            bench.cluster.train(name, 2)
        if round == 3:
            bench.cluster.fail(names[0])
        elif round > 3 and names:
            bench.cluster.succeed(names[0])
        if round == 8:
            extend(bench.db, experiment, Extension(seeds=3), FILES_ONLY, None)
        if round == 10:
            actions.retry(bench.db, bench.settings, experiment)
        bench.reconciler.wake()
        bench.go(2)
        seen.append(same())
    counts = {(len(table.arms[0].runs), sum(run.value is not None for arm in table.arms for run in arm.runs))
              for table in seen}  # fmt: skip
    assert len(counts) > 4, "the comparison has hardly changed"
    with counting_statements(bench.db.engine) as statements, bench.db.read() as session:
        kept.of(session, experiment)
    assert sum(text.startswith("SELECT") for text in statements) == 2


def test_the_spec_says_what_ranks_and_may_say_it_later_without_training(bench: Bench, spec: dict[str, Any]) -> None:
    kept, experiment = Comparisons(None), bench.submit({**spec, "seeds": 1})

    def ranked_by() -> str | None:
        with bench.db.read() as session:
            found = kept.of(session, experiment)
            assert report_of(session, experiment, None).comparison.metric == found.metric
        return found.metric.name if found.metric else None

    for _ in range(4):
        for name in bench.cluster.live():
            bench.cluster.succeed(name)
        bench.reconciler.wake()
        bench.go(2)
    probe, trained = ranked_by(), sum(bench.cluster.submissions.values())
    assert probe
    assert probe.startswith("probe/")
    asked = {**spec, "base": {**spec["base"], "evaluation": {"rank_by": "sanity/psnr"}}, "seeds": 1, "name": "other"}
    other = bench.submit(asked)
    extend(bench.db, experiment, Extension(evaluation={"rank_by": "sanity/psnr"}), FILES_ONLY, None)
    assert ranked_by() == "sanity/psnr"
    bench.go(4)
    with bench.db.read() as session:
        found = kept.of(session, other)
    assert found.metric
    assert (found.metric.name, found.complete) == ("sanity/psnr", True)
    assert sum(bench.cluster.submissions.values()) == trained
