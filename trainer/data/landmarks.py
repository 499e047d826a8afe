"""Landmarks of the images that are trained on, as masks of face parts need them: where parts lie in the input.

Letters: K images with landmarks, B images of a slice, L patches.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from trainer.contract import RunSpec
from trainer.data.decode import in_input, upright_size
from trainer.data.manifest import Images, Rows
from trainer.data.pictures import Undecodable
from trainer.method.draws import View
from trainer.method.masks import patches_of


class Points(NamedTuple):
    """Of the images of a subset, by index: [68, 2] in pixels of the upright image, for either mask."""

    online: Mapping[int, np.ndarray]
    target: Mapping[int, np.ndarray]

    @property
    def indices(self) -> set[int]:
        return {*self.online, *self.target}

    def of(self, view: View) -> Mapping[int, np.ndarray]:
        return self.online if view == View.ONLINE else self.target


def in_subset(points: Mapping[str, np.ndarray], rows: Rows) -> dict[int, np.ndarray]:
    """Points of the subset's images, by index in place of key; float32, as there may be millions."""
    order = rows.rows.argsort(kind="stable")
    ordered = rows.rows[order]
    found = {}
    for key, point_P2 in points.items():
        row = rows.manifest.find(key)
        place = len(ordered) if row is None else int(np.searchsorted(ordered, row))
        if place < len(ordered) and ordered[place] == row:
            found[int(order[place])] = point_P2.astype(np.float32)
    return found


class Measured:
    """Images that remember how large those of some rows are, once they have been read: their headers say so."""

    def __init__(self, images: Images, rows: set[int]) -> None:
        self._images, self._rows = images, rows
        self.size: dict[int, tuple[int, int]] = {}
        """Row -> (width, height), upright."""

    @property
    def is_remote(self) -> bool:
        return self._images.is_remote

    def key(self, row: int) -> str:
        return self._images.key(row)

    def get(self, row: int) -> bytes:
        data = self._images.get(row)
        if row in self._rows and row not in self.size:
            try:
                self.size[row] = upright_size(data)
            except Undecodable:
                self._rows.discard(row)  # whoever decodes it says so
        return data

    def measure(self, row: int) -> None:
        """Read it if its size is wanted: its pixels are there without that."""
        if row in self._rows and row not in self.size:
            self.get(row)


class FaceParts:
    """Where the parts of a face lie, of images that have been read."""

    def __init__(self, run: RunSpec, points: Points, images: Measured, rows: Rows) -> None:
        self._run, self._points, self._images, self._rows = run, points, images, rows

    def points(self, view: View, index_B: np.ndarray, mirrored_B: np.ndarray) -> list[np.ndarray | None]:
        """[68, 2] of each image as the network sees it, 0..1 from edge to edge; None for images without landmarks.

        Points keep their numbers in a mirrored image.
        """
        return [
            point_P2 if point_P2 is None or not mirrored else np.array([1, 0]) + point_P2 * np.array([-1, 1])
            for point_P2, mirrored in zip(self._in_input(view, index_B), mirrored_B, strict=True)
        ]

    def of(self, view: View, index_B: np.ndarray, mirrored_B: np.ndarray) -> np.ndarray:
        """bool [B, L], in the image as the network sees it; nowhere for images without landmarks."""
        run = self._run
        mask = run.mask if view == View.ONLINE else run.target_mask
        side = run.input_size // run.encoder.patch
        part_BSS = np.zeros((len(index_B), side, side), bool)
        known = {
            place: point_P2 for place, point_P2 in enumerate(self._in_input(view, index_B)) if point_P2 is not None
        }
        if known:
            part_BSS[list(known)] = patches_of(mask.first, np.stack(list(known.values())), side).reshape(-1, side, side)
        return np.where(mirrored_B[:, None, None], part_BSS[:, :, ::-1], part_BSS).reshape(len(index_B), -1)

    def _in_input(self, view: View, index_B: np.ndarray) -> list[np.ndarray | None]:
        run, points, found = self._run, self._points.of(view), list[np.ndarray | None]()
        for index in index_B.tolist():
            point_P2, size = points.get(index), self._images.size.get(self._rows[index])
            if point_P2 is None or size is None:
                found.append(None)
            else:
                found.append(in_input(point_P2.astype(np.float64), size, run.input_size, run.data.fit))
        return found
