"""The tanh warp: a crop whose middle is straight and whose rim holds the whole rest of the plane (FaRL, RoI tanh).

Coordinates u run from -1 to 1 over a crop and beyond it outside. With factor w, |u| <= 1 - w stays, and beyond it
u becomes sign(u) (tanh((|u| - (1 - w)) / w) w + (1 - w)), each axis for itself, so that the plane ends at 1.
"""

import torch
from torch import Tensor

# How close to the rim, where the plane's infinity lies, a place may be that is mapped back.
RIM = 1e-9


def warp(place: Tensor, factor: float) -> Tensor:
    """Straight coordinates -> warped ones, within -1..1 where factor > 0; factor 0 leaves them as they are."""
    if factor == 0:
        return place
    straight = 1 - _checked(factor)
    beyond = ((place.abs() - straight) / factor).clamp(min=0)
    return torch.where(place.abs() <= straight, place, place.sign() * (beyond.tanh() * factor + straight))


def unwarp(place: Tensor, factor: float) -> Tensor:
    """Warped coordinates -> straight ones: the inverse of `warp` up to rounding, the rim a long way out."""
    if factor == 0:
        return place
    straight = 1 - _checked(factor)
    beyond = ((place.abs() - straight) / factor).clamp(min=0, max=1 - RIM)
    return torch.where(place.abs() <= straight, place, place.sign() * (beyond.atanh() * factor + straight))


def _checked(factor: float) -> float:
    if not 0 < factor <= 1:
        raise ValueError(f"warp factor {factor}; possible: 0 to 1")
    return factor
