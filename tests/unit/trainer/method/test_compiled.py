"""Compiled networks are one graph each, compiled once a run, and take the same steps."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.trainer.method import test_passes as passes
from tests.unit.trainer.method.test_passes import GRID, SMALL, VARIANTS, trained
from trainer import loop
from trainer.contract import RunSpec

ASKED: dict[str, dict[str, Any]] = {
    **{name: VARIANTS[name] for name in ("both losses", "no contrast", "shown image")},
    "face-api": {"teacher": {"source": "random", "arch": "face-api", "taps": [1], "input_size": 32}},
    "a teacher of timm": {
        "teacher": {"source": "random", "arch": "vit_tiny_patch16_224", "taps": [1], "input_size": 32}
    },
}


@pytest.mark.parametrize("variant", ASKED)
def test_networks_compile_without_a_break_and_once(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunSpec.model_validate({**SMALL, **GRID, **ASKED[variant]})
    wanted = trained(run, 3)
    graphs = []

    def noted(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    # Whatever is no part of the graph is an error here, and what follows the graph is the compiler's affair.
    whole = partial(torch.compile, fullgraph=True, backend=noted)
    monkeypatch.setattr(torch, "compile", lambda function, **options: whole(function, dynamic=options["dynamic"]))
    fit = passes.fit

    def compiled_fit(run: RunSpec, parts: loop.Parts, *others: Any) -> bool:
        parts.compile()
        return fit(run, parts, *others)

    monkeypatch.setattr(passes, "fit", compiled_fit)
    torch.compiler.reset()
    found = trained(run, 3)
    # Passes of three cells, of which a group of two fills no whole one: all the same size to the compiler.
    assert len(graphs) == (2 if run.contrastive.weight else 1)
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )
