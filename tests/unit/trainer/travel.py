"""What a rank sends of its gradients, and when: tests.unit.trainer.travel FILE eager|compiled

Writes the order of two kinds of events of rank 0's last step: the name of a weight whose gradient is there, and SENT
when a part of the gradient is on its way to the other rank.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.futures import Future

from tests.unit.trainer.method.test_variants import SMALL, Forgetful, drawn_slices
from trainer import teachers
from trainer.contract import RunSpec
from trainer.data.batches import Slice
from trainer.elastic.distributed import joined_world
from trainer.loop import Parts, fit, synchronised
from trainer.method.grid import StepPlan, step_plan, teams
from trainer.method.optim import adamw
from trainer.tracking.report import Silent
from trainer.weights.initial import start

SENT = "SENT"
# Two passes a rank and step.
RUN = RunSpec.model_validate({**SMALL, "batch": {"slice": 4, "contrastive_group": 8, "global_batch": 32}})
CELLS_A_PASS = 2


def train(compiled: bool) -> list[str]:
    """Events of this rank's last step. Its buckets are made small, so that this small model has several."""
    dist._DEFAULT_FIRST_BUCKET_BYTES = 4096  # type: ignore[attr-defined]
    plain = torch.compile
    torch.compile = lambda function, **options: plain(function, backend="aot_eager", dynamic=options["dynamic"])  # type: ignore[assignment]
    ddp = torch.nn.parallel.DistributedDataParallel
    made = ddp.__init__
    ddp.__init__ = lambda *args, **options: made(*args, bucket_cap_mb=0.01, **options)  # type: ignore[method-assign]
    with joined_world() as world:
        plan = step_plan(RUN.batch, world.rank, world.size)
        world.form_teams(teams(RUN.batch, world.size))
        model, target = start(RUN)
        parts = Parts(
            model, target, teachers.build(RUN, world.device), adamw(model, RUN), 32, cells_a_pass=CELLS_A_PASS
        )
        if compiled:
            parts.compile()
        shared: Any = synchronised(world, parts)
        events: list[str] = []
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(lambda _, name=name: events.append(name))
        shared.register_comm_hook(events, _send)

        class Steps(Silent):
            def step(self, step: int, *args: Any, **more: float) -> None:
                if step < RUN.total_steps(32):
                    events.clear()

        fit(RUN, parts, plan, _mine(plan, world.device), world, Forgetful(), Steps(), shared)
    return events


def _send(events: list[str], bucket: dist.GradBucket) -> Future[torch.Tensor]:
    events.append(SENT)
    sent = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True)
    return sent.get_future().then(lambda future: future.value()[0])


def _mine(plan: StepPlan, device: torch.device) -> Iterator[Slice]:
    drawn = drawn_slices(RUN, device)
    while True:
        step = [next(drawn) for _ in range(plan.num_cells)]
        for group in plan.groups:
            yield from (step[group.index * RUN.batch.slices_per_group + index] for index in group.slices)


def main() -> int:
    file, how = sys.argv[1:]
    found = train(how == "compiled")
    if os.environ["RANK"] == "0":
        Path(file).write_text(json.dumps(found))
    return 0
