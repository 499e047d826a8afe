"""The same images give the same numbers from wherever they come."""

import os
from pathlib import Path
from typing import Any

import lmdb
import pytest

from tests.forks import forks
from trainer.contract import Data, RunSpec
from trainer.contract.presets import TINY
from trainer.contract.records import Result
from trainer.data.images.sharding import write_shards
from trainer.data.manifest import open_images, read_manifest
from trainer.store.objects import open_store
from trainer.store.rundir import list_checkpoints, read_result


def train(data: dict[str, Any], run_uri: str, folder: Path) -> Result:
    spec = TINY | {"data": data, "teacher": {"source": "none"}, "schedule": {"unit": "steps", "length": 3, "warmup": 1}}
    (folder / "spec.json").write_text(RunSpec.model_validate(spec).model_dump_json())
    done = forks.run("trainer.main", "--spec", str(folder / "spec.json"), env={**os.environ, "MCF_RUN_URI": run_uri})
    assert done.returncode == 0, done.stderr
    result = read_result(open_store(run_uri))
    assert result
    return result


def test_folder_lmdb_shards_and_s3_train_alike(tiny_faces: Path, tmp_path: Path, s3_server: str) -> None:
    bucket = open_store(f"{s3_server}/faces")
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 24) as env, env.begin(write=True) as txn:
        for image in tiny_faces.iterdir():
            txn.put(image.name.encode(), image.read_bytes())
            bucket.put(image.name, image.read_bytes())
        txn.put(b"length", b"48")

    folder = train({"uri": str(tiny_faces)}, str(tmp_path / "a"), tmp_path)
    database = train({"uri": str(tmp_path / "db"), "format": "lmdb"}, str(tmp_path / "b"), tmp_path)
    remote = train({"uri": f"{s3_server}/faces"}, f"{s3_server}/runs/c", tmp_path)
    manifest = read_manifest(Data(uri=str(tiny_faces)))
    rows = manifest.split(held_out=0, subset_size=None, subset_seed=7).train
    sharded = []
    for number, out in enumerate([str(tmp_path / "shards"), f"{s3_server}/shards"]):
        write_shards(open_images(Data(uri=str(tiny_faces)), manifest), rows, out, shard_bytes=10_000)
        sharded.append(train({"uri": out, "format": "shards"}, str(tmp_path / f"d{number}"), tmp_path))

    for other in database, remote, *sharded:
        assert (other.subset_digest, other.held_out_digest) == (folder.subset_digest, folder.held_out_digest)
        assert other.losses == pytest.approx(folder.losses, rel=1e-6)
    assert [checkpoint.step for checkpoint in list_checkpoints(open_store(f"{s3_server}/runs/c"))] == [3]
