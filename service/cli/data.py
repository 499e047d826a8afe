"""`mcf data`: what a data set holds, and making it fit for training. Needs no service."""

from enum import StrEnum
from typing import Annotated

import typer

from service.cli import home

app = typer.Typer(help="Index, shard, verify and show data sets.", no_args_is_help=True)


class DataFormat(StrEnum):
    FOLDER = "folder"
    LMDB = "lmdb"
    SHARDS = "shards"


Uri = Annotated[str, typer.Argument(help="Folder of images, LMDB, or folder of tar shards; a path or s3:// address.")]
AskedFormat = Annotated[
    DataFormat | None, typer.Option("--format", help="Format of the data; default: what it looks like.")
]
Keys = Annotated[str | None, typer.Option(help="LMDB only: text file with one image key a line.")]
Suffix = Annotated[str | None, typer.Option(help="Shards only: which file of a sample is the image, such as jpg.")]
IndexFile = Annotated[str | None, typer.Option("--index", help="Index written earlier; default: list the data.")]
SubsetSize = Annotated[int | None, typer.Option(min=1, help="Number of images, chosen as a run chooses them.")]
SubsetSeed = Annotated[int, typer.Option(min=0, help="Seed of the subset.")]
HeldOut = Annotated[int | None, typer.Option(min=0, help="Number of images held out, as `evaluation.held_out` says.")]


@app.command()
def index(
    ctx: typer.Context,
    uri: Uri,
    format: AskedFormat = None,
    keys: Keys = None,
    suffix: Suffix = None,
    output: Annotated[
        str | None, typer.Option(help="File to write; default: URI.index, or index.mcf beside shards.")
    ] = None,
) -> None:
    """Read every image once and list all of them in one file."""
    from service.cli import datasets

    home.reach(ctx.obj, uri, output)
    datasets.index(datasets.described(uri, format, keys, suffix), output)


@app.command()
def shard(
    ctx: typer.Context,
    uri: Uri,
    out: Annotated[str, typer.Argument(help="Folder or s3:// prefix for the shards and their index.")],
    format: AskedFormat = None,
    keys: Keys = None,
    suffix: Suffix = None,
    index: IndexFile = None,
    size_mib: Annotated[float, typer.Option(min=0.01, help="Size of a shard in MiB.")] = 256,
    subset_size: SubsetSize = None,
    subset_seed: SubsetSeed = 0,
    held_out: HeldOut = None,
) -> None:
    """Write images as tar shards in a shuffled order, with an index. After an interruption, run it again."""
    from service.cli import datasets

    home.reach(ctx.obj, uri, out, keys, index)
    data = datasets.described(uri, format, keys, suffix, index)
    datasets.shard(data, out, int(size_mib * 2**20), datasets.Subset(subset_size, subset_seed, held_out))


@app.command()
def verify(
    ctx: typer.Context,
    uri: Uri,
    format: AskedFormat = None,
    keys: Keys = None,
    suffix: Suffix = None,
    index: IndexFile = None,
) -> None:
    """Read every image again and decode it; name each that is missing, changed, extra or undecodable.

    Compared with the index: the named one, URI.index, or that beside shards. Exit code 1 when there is a problem.
    """
    from service.cli import datasets

    home.reach(ctx.obj, uri, keys, index)
    raise typer.Exit(1 if datasets.verify(datasets.described(uri, format, keys, suffix, index)) else 0)


@app.command()
def show(
    ctx: typer.Context,
    uri: Uri,
    format: AskedFormat = None,
    keys: Keys = None,
    suffix: Suffix = None,
    index: IndexFile = None,
    subset_size: SubsetSize = None,
    subset_seed: SubsetSeed = 0,
    held_out: HeldOut = None,
) -> None:
    """Show counts, sizes and digests. Reads no image of a data set that has an index."""
    from service.cli import datasets

    home.reach(ctx.obj, uri, keys, index)
    data = datasets.described(uri, format, keys, suffix, index)
    datasets.show(data, datasets.Subset(subset_size, subset_seed, held_out))
