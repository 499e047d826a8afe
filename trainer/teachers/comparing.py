"""How features of the prediction and of the image are compared, where user code says it (`teacher.loss`).

Letters: S slices of a pass, B images of a slice, P tokens, D width.
"""

import torch
from torch import Tensor

from trainer.contract import RunSpec
from trainer.method.losses import wide
from trainer.method.mcf import Compare
from trainer.usercode.loading import UserFunction
from trainer.usercode.reading import LOSS


def user_comparison(run: RunSpec) -> Compare | None:
    """None where the published comparison counts. Raises UserCodeError, StorageError."""
    return UserLoss(UserFunction(run.teacher.loss, LOSS)) if run.teacher.loss else None


class UserLoss:
    """The sum of `feature_loss` over the taps, slice by slice."""

    def __init__(self, function: UserFunction) -> None:
        self._function = function

    # Compiled networks call it as it is: what a compiler says of other people's code helps nobody.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, predicted: list[Tensor], wanted: list[Tensor]) -> Tensor:
        """Loss [S] of taps [S, B, P, D], in float32 at least. Raises UserCodeError."""
        total_S = []
        for mine, theirs in zip(zip(*predicted, strict=True), zip(*wanted, strict=True), strict=True):
            taps = zip(mine, theirs, strict=True)
            total_S.append(
                torch.stack([self._of_a_tap(wide(tap), wide(target.detach())) for tap, target in taps]).sum()
            )
        return torch.stack(total_S)

    def _of_a_tap(self, predicted_BPD: Tensor, wanted_BPD: Tensor) -> Tensor:
        loss = self._function(predicted_BPD, wanted_BPD)
        if not isinstance(loss, Tensor) or loss.shape != () or not loss.is_floating_point():
            what = (
                f"{loss.dtype} of shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            )
            raise self._function.wrong(f"it returned {what}; possible: a tensor that holds one number")
        if predicted_BPD.requires_grad and not loss.requires_grad:
            raise self._function.wrong("its result has no gradient; possible: torch operations on `predicted`")
        return loss.to(predicted_BPD.dtype)
