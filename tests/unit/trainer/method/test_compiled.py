"""Compiled networks are one graph each, compiled once a run, and take the same steps."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.trainer.method import test_passes as passes
from tests.unit.trainer.method.test_passes import GRID, SMALL, VARIANTS, trained
from trainer.contract import RunSpec
from trainer.loop import Parts, synchronised
from trainer.passes import prepare

ASKED: dict[str, dict[str, Any]] = {
    **{name: VARIANTS[name] for name in ("both losses", "no contrast", "shown image", "face-api")},
    "a teacher of timm": {
        "teacher": {"source": "random", "arch": "vit_tiny_patch16_224", "taps": [1], "input_size": 32}
    },
}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """What is compiled. Whatever is no part of a graph is an error; what follows it is the compiler's affair."""
    compiled: list[torch.fx.GraphModule] = []

    def noted(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    whole = partial(torch.compile, fullgraph=True, backend=noted)
    monkeypatch.setattr(torch, "compile", lambda function, **options: whole(function, dynamic=options["dynamic"]))
    torch.compiler.reset()
    return compiled


@pytest.mark.parametrize("variant", ASKED)
def test_networks_compile_without_a_break_and_once(
    variant: str, graphs: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunSpec.model_validate({**SMALL, **GRID, **ASKED[variant]})
    wanted = trained(run, 3)
    fit = passes.fit

    def compiled_fit(run: RunSpec, parts: Parts, *others: Any) -> bool:
        parts.compile()
        return fit(run, parts, *others)

    monkeypatch.setattr(passes, "fit", compiled_fit)
    found = trained(run, 3)
    # Passes of three cells, of which a group of two fills no whole one: all the same size to the compiler.
    assert len(graphs) == (2 if run.contrastive.weight else 1)
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, rtol=1e-9, atol=1e-9), name


def test_what_is_compiled_before_the_first_step_is_what_training_uses(
    graphs: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MCF_COMPILE", "1")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("MCF_CELLS_A_PASS", "4")
    fit, prepared = passes.fit, []

    def prepared_fit(run: RunSpec, parts: Parts, plan: Any, batches: Any, world: Any, *others: Any) -> bool:
        model = synchronised(world, parts)
        prepare(run, parts, model, plan, world)
        prepared.append(len(graphs))
        assert parts.compiled
        return fit(run, parts, plan, batches, world, *others, model)

    monkeypatch.setattr(passes, "fit", prepared_fit)
    trained(passes.spec("both losses"), 1)
    assert prepared == [len(graphs)] == [2]


def test_what_cannot_be_compiled_is_as_it_was() -> None:
    for variant in "both losses", "no contrast":
        run = passes.spec(variant)
        model = passes.build(run)
        target = passes.Target(run, model) if run.contrastive.weight else None
        parts = Parts(model, target, None, passes.adamw(model, run), 32)
        parts.compile()
        parts.uncompile()
        assert not parts.compiled
        assert parts.model.of_slices.__func__ is type(model).of_slices  # type: ignore[attr-defined]
