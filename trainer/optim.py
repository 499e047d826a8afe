"""AdamW with the published groups, and the learning rate as a function of the step (method 1.5)."""

import math

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from trainer.spec import RunSpec


def adamw(model: nn.Module, run: RunSpec) -> AdamW:
    """Tensors with more than one axis are decayed, tokens among them; biases and the scales of norms are not."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in trained if parameter.ndim > 1 and not name.endswith(".bias")]
    kept = [parameter for name, parameter in trained if parameter.ndim <= 1 or name.endswith(".bias")]
    groups = [
        {"params": decayed, "weight_decay": run.optimizer.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=0.0, betas=run.optimizer.betas, eps=run.optimizer.eps, fused=True)


def learning_rate(run: RunSpec, step: int, num_images: int) -> float:
    """Rate of one step: linear from exactly 0, then half a cosine down to min_lr over the schedule's length."""
    schedule = run.schedule
    now = step if schedule.unit == "steps" else step * run.batch.global_batch / num_images
    if now < schedule.warmup:
        return run.learning_rate * now / schedule.warmup
    share = min(1.0, (now - schedule.warmup) / max(schedule.length - schedule.warmup, 1e-12))
    return schedule.min_lr + (run.learning_rate - schedule.min_lr) * 0.5 * (1 + math.cos(math.pi * share))


def set_learning_rate(optimizer: AdamW, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def gradient_norm(model: nn.Module) -> Tensor:
    """L2 norm of the whole gradient, a scalar on the device; measured, never clipped."""
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
