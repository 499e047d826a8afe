"""Masks that user code draws: what it is given, and what it may give back. docs/user-code.md tells it to users.

Letters: B images, L patches.
"""

from collections.abc import Sequence

import numpy as np

from trainer.contract import Mask
from trainer.usercode.loading import UserFunction
from trainer.usercode.reading import MASK


class UserMask:
    """The function `mask` of a file."""

    def __init__(self, mask: Mask) -> None:
        """Raises UserCodeError, StorageError."""
        assert mask.code, "a mask of kind code without code"
        self._function = UserFunction(mask.code, MASK)
        self._is_tried = False

    def scores(
        self, noise_BL: np.ndarray, side: int, num_visible: int, landmarks: Sequence[np.ndarray | None]
    ) -> np.ndarray:  # fmt: skip
        """Float64 [B, L]: the smallest stay visible. `landmarks`: [68, 2] of each image, 0..1 in the input.

        Raises UserCodeError where the function fails, or returns something else.
        """
        return np.stack([
            self._of_one(noise_L, side, num_visible, point_P2)
            for noise_L, point_P2 in zip(noise_BL, landmarks, strict=True)
        ])  # fmt: skip

    def _of_one(self, noise_L: np.ndarray, side: int, num_visible: int, point_P2: np.ndarray | None) -> np.ndarray:
        score_L = self._called(noise_L, side, num_visible, point_P2)
        if not self._is_tried:
            if not np.array_equal(score_L, self._called(noise_L, side, num_visible, point_P2)):
                raise self._function.wrong(
                    "called twice with the same arguments, it gave other scores; draw from `noise`, and keep nothing"
                )
            self._is_tried = True
        return score_L

    def _called(self, noise_L: np.ndarray, side: int, num_visible: int, point_P2: np.ndarray | None) -> np.ndarray:
        # Copies: what it does to its arguments is nobody else's business.
        found = self._function(noise_L.copy(), side, num_visible, None if point_P2 is None else point_P2.copy())
        score_L = self._function.watched(np.asarray, found)
        if score_L.shape != noise_L.shape or score_L.dtype.kind not in "biuf":
            raise self._function.wrong(
                f"it returned {score_L.dtype} of shape {list(score_L.shape)}; "
                f"possible: {len(noise_L)} numbers, one a patch"
            )
        score_L = score_L.astype(np.float64)
        if odd := int((~np.isfinite(score_L)).sum()):
            # Also infinite ones: in NumPy a division by zero is no exception.
            raise self._function.wrong(f"{odd} of its {len(noise_L)} scores are NaN or infinite")
        return score_L
