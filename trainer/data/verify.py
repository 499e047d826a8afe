"""Read a data set again, byte by byte, and decode every image: python -m trainer.data.verify DATA

DATA is the `data` of a spec as JSON. What is found is printed as lines of JSON: first {"total": images}, then
{"done": images} now and then, and for everything wrong {"problem": what, "key": which, "reason": why}. Nothing is
changed, and the exit code is 0 when it could be read to the end, whatever was found.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from functools import partial

import torch

from trainer.contract import Data
from trainer.data.decode import decode
from trainer.data.images.database import keys_of
from trainer.data.images.folder import list_images
from trainer.data.images.index import text
from trainer.data.images.shards import ShardImages, members, open_shard
from trainer.data.images.sorting import read_ahead
from trainer.data.manifest import DataError, Images, Manifest, named_manifest, open_images, read_manifest
from trainer.data.pictures import Undecodable
from trainer.store.objects import StorageError

# Side that images are decoded to, as the published recipe trains on them.
INPUT_SIZE = 224
EVERY = 256

Problem = tuple[str, str]


def main(data: Data) -> None:
    torch.set_num_threads(1)  # the images are what is parallel here
    # Not read_manifest: it would refuse what is to be told image by image.
    manifest = named_manifest(data.index, data.format) if data.index else read_manifest(data)
    images = open_images(data, manifest)
    say(total=len(manifest))
    look = partial(examine, data, manifest, images)
    for done, problem in enumerate(read_ahead(look, range(len(manifest))), start=1):
        if problem:
            say(problem=problem[0], key=manifest.key(done - 1), reason=problem[1])
        if done % EVERY == 0:
            say(done=done)
    for key in extra(data, manifest, images):
        say(problem="extra", key=key, reason="the index does not name it")


def examine(data: Data, manifest: Manifest, images: Images, row: int) -> Problem | None:
    """What is wrong with one image; None when it is as indexed and can be decoded."""
    try:
        encoded = images.get(row)
    except (DataError, StorageError) as error:
        return "missing or changed", str(error)
    if hashlib.sha256(encoded).hexdigest() != manifest.content(row):
        return "changed", "it has other bytes than when it was indexed"
    try:
        decode(encoded, INPUT_SIZE, data.fit, data.max_pixels)
    except Undecodable as error:
        return "undecodable", str(error)
    return None


def extra(data: Data, manifest: Manifest, images: Images) -> Iterator[str]:
    """Keys of images that the data holds and the index does not name."""
    for key in _keys(data, manifest, images):
        if manifest.index.find(key) is None:
            yield text(key)


def _keys(data: Data, manifest: Manifest, images: Images) -> Iterator[bytes]:
    if isinstance(images, ShardImages):
        for shard in images.shards:
            with open_shard(images.store, shard) as file:
                yield from (key for key, _, _ in members(file, shard.name, data.suffix or manifest.index.about.suffix))
    elif data.format == "folder":
        yield from (key for key, _ in list_images(data.uri))
    elif not manifest.index.about.key_list:  # or a database may hold more than its list names
        yield from keys_of(data.uri)


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)  # noqa: T201


if __name__ == "__main__":
    try:
        main(Data.model_validate_json(sys.argv[1]))
    except (DataError, StorageError) as error:
        say(error=str(error))
        raise SystemExit(1) from None
