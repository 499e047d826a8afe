"""What decides a fit beside the benchmark and the encoder. Pydantic only."""

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from trainer.contract.frozen import Asked


class Selection(StrEnum):
    """Which epoch's numbers are the result."""

    LAST = "last"
    BEST_ON_VALIDATION = "best_on_validation"
    BEST_ON_TEST = "best_on_test"
    """As most published numbers are chosen: too good by what the choice picks up, and labelled so."""


class Recipe(Asked):
    """Training of pyramid and head, and of the encoder unless it is frozen. Defaults: FaRL's, for alignment."""

    frozen: bool = False
    """Leaves the encoder as it was pretrained."""
    epochs: int = Field(150, ge=1)
    batch: int = Field(40, ge=2)
    """Faces of an optimizer step."""
    slice: int = Field(40, ge=2)
    """Faces of one forward and backward, and of one normalisation statistic; a divisor of `batch`. Published: 40."""
    encoder_lr: float = Field(1e-4, gt=0)
    pyramid_lr: float = Field(1e-2, gt=0)
    head_lr: float = Field(1e-2, gt=0)
    decay_epoch: int = Field(200, ge=0)
    """First epoch, counted from 0, with a tenth of the rates."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(1e-5, ge=0)
    average_decay: float = Field(0.999, ge=0, lt=1)
    """Of the moving average of the weights, per step; the average is what is evaluated."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Part of the training faces, repeated to the length of all of them (few-shot)."""
    selection: Selection = Selection.LAST
    validation_share: float = Field(0.1, gt=0, lt=1)
    """Part of the training images set aside where the benchmark has no validation split and one is needed."""
    seed: int = Field(0, ge=0)
    """Draw of pyramid and head, order, noise and dropout."""

    @model_validator(mode="after")
    def _slices_fill_the_batch(self) -> Self:
        if self.batch % self.slice:
            raise ValueError(f"slice: asked for {self.slice}; possible: a divisor of batch = {self.batch}")
        return self

    def rate_factor(self, epoch: int) -> float:
        """What the rates are multiplied by in an epoch, counted from 0."""
        return 0.1 if epoch >= self.decay_epoch else 1.0
