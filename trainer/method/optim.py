"""AdamW with the published groups (docs/method.md); learning rate and target's momentum as functions of the step."""

import math

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from trainer.contract import RunSpec


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
    now = _now(run, step, num_images)
    if now < schedule.warmup:
        return run.learning_rate * now / schedule.warmup
    share = min(1.0, (now - schedule.warmup) / max(schedule.length - schedule.warmup, 1e-12))
    return schedule.min_lr + (run.learning_rate - schedule.min_lr) * 0.5 * (1 + math.cos(math.pi * share))


def ema_momentum(run: RunSpec, step: int, num_images: int) -> float:
    """m of every move of the target in one step: constant, or by half a cosine from ema.momentum to 1."""
    if run.ema.ramp == "constant":
        return run.ema.momentum
    share = min(1.0, _now(run, step, num_images) / run.schedule.length)
    return 1 - (1 - run.ema.momentum) * 0.5 * (1 + math.cos(math.pi * share))


def _now(run: RunSpec, step: int, num_images: int) -> float:
    """How far the run is before a step, in the schedule's unit."""
    return step if run.schedule.unit == "steps" else step * run.batch.global_batch / num_images


def set_learning_rate(optimizer: AdamW, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def gradient_norm(model: nn.Module) -> Tensor:
    """L2 norm of the whole gradient, a scalar on the device."""
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def clip_gradient(model: nn.Module, norm: Tensor, longest: float) -> None:
    """Scale the gradient, whose norm is `norm`, down to length `longest` where it is longer."""
    torch.nn.utils.clip_grads_with_norm_(model.parameters(), longest, norm)
