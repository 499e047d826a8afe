"""The downstream probe: how much of a face can be read off frozen features by a linear map.

Ridge regression from all tokens of the frozen encoder to landmarks, or to one column a label, cross-validated
over folds that the images' contents decide: every arm, every seed and both floors see the same ones.
Letters: N images, F features, T targets, L patches, D width.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.contract import Data, RunSpec
from trainer.contract.records import Metric
from trainer.data.batches import normalise
from trainer.data.decode import decode, upright_size
from trainer.data.manifest import DataError, Images, open_images, read_manifest
from trainer.data.pictures import Undecodable
from trainer.evaluation.annotations import Annotations, Landmarks, parse
from trainer.evaluation.neighbours import nearest
from trainer.evaluation.readers.source import digest_of_faces
from trainer.evaluation.ridge import out_of_fold
from trainer.evaluation.team import ALONE, Dealt, Team
from trainer.method.vit import Encoder
from trainer.store.objects import read_object

# ViT-B/16 has 0.6 MB of features an image.
MAX_IMAGES = 4000


@dataclass(frozen=True)
class ProbeTask:
    """Images, what is to be predicted for them, and the folds. In a team each rank has its own n of the N images."""

    image_nCHW: Tensor
    """uint8 at the run's input size."""
    contents: tuple[str, ...]
    """sha256 of each encoded image."""
    target_NT: Tensor
    fold_N: Tensor
    annotations: Annotations
    note: str
    dealt: Dealt

    def measure(self, feature_nF: Tensor) -> Metric:
        """The probe's metric with these features, of this rank's images. A collective."""
        guess_NT = out_of_fold(feature_nF, self.target_NT, self.fold_N, self.dealt)
        return self.annotations.score(guess_NT.cpu(), self.target_NT)

    def measure_neighbours(self, feature_nF: Tensor, name: str) -> Metric | None:
        """The probe's metric with the points of each face's nearest neighbour as the guess; None for labels.

        A collective.
        """
        if not isinstance(self.annotations, Landmarks):
            return None
        guess_NT = self.target_NT[nearest(feature_nF, self.contents, self.dealt)]
        found = self.annotations.score(guess_NT, self.target_NT)
        # Without an interval: a resample of the images would change who is whose neighbour.
        return found.model_copy(update={"name": name, "low": None, "high": None})


def probe_task(run: RunSpec, team: Team = ALONE) -> ProbeTask | None:
    """The spec's probe with its images decoded; None where the spec names neither landmarks nor labels.

    A collective. Raises DataError when images are missing, too few, or not those of the spec's digest.
    """
    evaluation = run.evaluation
    source = evaluation.landmarks or evaluation.labels
    if source is None:
        return None
    text = read_object(source)
    try:
        annotations = parse(text, landmarks=bool(evaluation.landmarks))
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    # A folder of its own, or the training data.
    data = Data(uri=evaluation.images) if evaluation.images else run.data
    manifest = read_manifest(data)
    found_at = {key: manifest.find(key) for key in annotations.keys}
    row_of = {key: row for key, row in found_at.items() if row is not None}
    if missing := sorted(found_at.keys() - row_of.keys()):
        raise DataError(f"{source} names {len(missing)} images that are not there: {', '.join(missing[:10])}")
    content_of = {key: manifest.content(row) for key, row in row_of.items()}
    found = digest_of_faces(manifest.digest, hashlib.sha256(text).hexdigest())
    if evaluation.sha256 not in (None, found):
        raise DataError(f"probe images or {source} have changed: digest {found}, the spec says {evaluation.sha256}")
    place_of = _shuffled({content_of[key] for key in annotations.keys})
    keys = sorted(annotations.keys, key=lambda key: (place_of[content_of[key]], key))[:MAX_IMAGES]
    if len(keys) < 2 * evaluation.folds:
        raise DataError(f"{source} leaves {len(keys)} usable images; {evaluation.folds} folds need twice as many")
    dealt = Dealt(len(keys), team)
    image_nCHW, sizes = _decoded(open_images(data, manifest), [row_of[keys[place]] for place in dealt.mine], run)
    sizes = [size for theirs in team.collect(sizes) for size in theirs]
    left_out = annotations.num_left_out + len(annotations.keys) - len(keys)
    return ProbeTask(
        image_nCHW=image_nCHW,
        contents=tuple(content_of[key] for key in keys),
        target_NT=annotations.targets(keys, sizes, run.input_size, run.data.fit),
        fold_N=torch.tensor([place_of[content_of[key]] % evaluation.folds for key in keys]),
        annotations=annotations,
        note=f"{len(keys)} images in {evaluation.folds} folds, {left_out} annotated ones left out; {annotations.note}",
        dealt=dealt,
    )


def pixel_features(image_NCHW: Tensor, device: torch.device) -> Tensor:
    """Normalised pixels [N, 3 H W] of uint8 images: the floor that needs no encoder."""
    return normalise(image_NCHW.to(device)).flatten(1)


@torch.no_grad()
def encoder_features(encoder: Encoder, image_NCHW: Tensor, device: torch.device) -> Tensor:
    """All tokens [N, (1 + L) D], cls and patches, of uint8 images."""
    dtype = encoder.cls_token.dtype
    parts = (normalise(part_BCHW.to(device), dtype) for part_BCHW in image_NCHW.split(Dealt.batch))
    return torch.cat([encoder.features(image_BCHW).flatten(1) for image_BCHW in parts])


def _shuffled(contents: set[str]) -> dict[str, int]:
    """Place of each content in an order no name has a say in; copies of an image share one, and so their fold."""
    order = sorted(contents, key=lambda content: hashlib.sha256(f"probe {content}".encode()).hexdigest())
    return {content: place for place, content in enumerate(order)}


def _decoded(images: Images, rows: Sequence[int], run: RunSpec) -> tuple[Tensor, list[tuple[int, int]]]:
    """Pixels [N, 3, H, W] at the input size, and each image's own upright (width, height)."""

    def read(row: int) -> tuple[Tensor, tuple[int, int]]:
        data = images.get(row)
        try:
            return decode(data, run.input_size, run.data.fit, run.data.max_pixels), upright_size(data)
        except Undecodable as error:
            # Nothing stands in for an image with an annotation of its own.
            raise DataError(f"annotated image {images.key(row)!r} cannot be decoded: {error}") from error

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, rows))
    image_NCHW = torch.empty(len(rows), 3, run.input_size, run.input_size, dtype=torch.uint8)
    for place, (pixels_CHW, _) in enumerate(found):
        image_NCHW[place] = pixels_CHW
    return image_NCHW, [size for _, size in found]
