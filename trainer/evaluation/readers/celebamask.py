"""CelebAMask-HQ: pictures of 1024 pixels, and for each a mask of 512 pixels for every class that it shows.

    CelebA-HQ-img/7.jpg
    CelebAMask-HQ-mask-anno/0/00007_skin.png    2,000 images a folder; no file where a class does not occur
    CelebA-HQ-to-CelebA-mapping.txt             idx orig_idx orig_file, after a line of headings

Splits are those of CelebA itself, which are ranges of the original file's number; records are in its order, which a
few-shot fraction follows.
"""

from pathlib import PurePath

from trainer.data.manifest import DataError
from trainer.evaluation.readers.place import Place
from trainer.evaluation.readers.record import Layers, Record, Split, expect_file, expect_images, spread

# In the order in which they are laid over each other, after the background.
LAYERS = (
    "neck", "skin", "cloth", "l_ear", "r_ear", "l_brow", "r_brow", "l_eye", "r_eye", "nose", "mouth", "l_lip",
    "u_lip", "hair", "eye_g", "hat", "ear_r", "neck_l",
)  # fmt: skip
CLASSES = ("background", *LAYERS)
IMAGES_PER_FOLDER = 2000
# Last file of CelebA's training and of its validation images, counted from 1 (list_eval_partition.txt).
LAST_TRAIN, LAST_VALIDATION = 162_770, 182_637


def read_celebamask(root: Place, most: int | None = None) -> list[Record]:
    """Masks of 19 classes. Raises DataError. `most`: so many of the images that the table names."""
    mapping = expect_file(
        root / "CelebA-HQ-to-CelebA-mapping.txt", "the table idx orig_idx orig_file of CelebAMask-HQ's images"
    )
    image_of: dict[int, int] = {}
    try:
        lines = mapping.read_bytes().decode().splitlines()[1:]
    except UnicodeDecodeError as error:
        raise DataError(f"{mapping} is no text: {error}") from error
    for number, line in enumerate(lines, start=2):
        try:
            index, _, original = line.split()
            image_of[int(PurePath(original).stem)] = int(index)
        except ValueError as error:
            raise DataError(
                f"{mapping} line {number} is not idx orig_idx orig_file, two numbers and a name like 1.jpg"
            ) from error
    found = []
    for place, image in spread(sorted(image_of.items()), most):
        folder = root / "CelebAMask-HQ-mask-anno" / str(image // IMAGES_PER_FOLDER)
        paths = [(layer, folder / f"{image:05d}_{name}.png") for layer, name in enumerate(LAYERS, start=1)]
        layers = tuple((layer, path) for layer, path in paths if path.is_file())
        if not layers:
            raise DataError(f"{folder} has no mask of image {image}, such as {image:05d}_skin.png")
        picture = root / "CelebA-HQ-img" / f"{image}.jpg"
        found.append(Record(image=picture, split=split_of(place), mask=Layers(layers)))
    return expect_images(found, f"CelebAMask-HQ in {root}")


def split_of(original: int) -> Split:
    """CelebA's own split of its file number `original`, counted from 1."""
    if original <= LAST_TRAIN:
        return "train"
    return "validation" if original <= LAST_VALIDATION else "test"
