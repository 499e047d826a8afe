"""A benchmark of three faces, in a folder and on a store."""

from pathlib import Path

from PIL import Image

from trainer.store.objects import open_store


def draw_lapa(root: Path) -> Path:
    """A face a split, in the format of LaPa."""
    points = "".join(f"{place} {place}\n" for place in range(106))
    for split in "train", "val", "test":
        for folder in "images", "labels", "landmarks":
            (root / split / folder).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / split / "images/a.jpg")
        Image.new("L", (4, 4), 255).save(root / split / "labels/a.png")
        (root / split / "landmarks/a.txt").write_text(f"106\n{points}")
    return root


def colour_a_mask(root: Path) -> None:
    Image.new("RGB", (4, 4), (1, 2, 3)).save(root / "val/labels/a.png")


def upload(folder: Path, uri: str) -> None:
    for file in filter(Path.is_file, folder.rglob("*")):
        open_store(uri).put_file(str(file.relative_to(folder)), file)
