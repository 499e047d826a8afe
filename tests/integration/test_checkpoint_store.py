"""Checkpoints on a real S3 server: multipart upload, and nothing left of an upload that died."""

import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from trainer.contract import records
from trainer.state.checkpoint import CheckpointStore, write_state
from trainer.store import objects
from trainer.store.objects import open_store

DIGEST = "a" * 64
ROOT = Path(__file__).resolve().parents[2]

SAVE_FOREVER = """
import sys
from tests.integration.test_checkpoint_store import save_forever
for step in save_forever(sys.argv[1]):
    print(step, flush=True)
"""


def save(saving: CheckpointStore, step: int, weights: torch.Tensor) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "state.pt")
        saving.upload(write_state({"w": weights}, path, step=step, spec_digest=DIGEST, world_size=1), path)


def save_forever(uri: str) -> Iterator[int]:
    saving = CheckpointStore(open_store(uri), spec_digest=DIGEST, keep=2)
    for step in itertools.count(1):
        save(saving, step, torch.full((6_000_000,), float(step)))
        yield step


def test_a_big_state_goes_up_in_parts_and_only_the_newest_stay(s3_server: str) -> None:
    store = open_store(s3_server)
    saving = CheckpointStore(store, spec_digest=DIGEST, keep=1)
    weights = torch.arange(9_000_000, dtype=torch.float32)  # 36 MB: three parts
    for step in 1, 2:
        save(saving, step, weights * step)
    restored = CheckpointStore(store, spec_digest=DIGEST, keep=1).restore_latest()
    assert restored is not None
    assert restored[0].step == 2
    torch.testing.assert_close(restored[1]["w"], weights * 2)
    assert [entry.name for entry in store.list()] == [
        records.checkpoint_name(2) + records.COMMITTED,
        records.checkpoint_name(2) + records.STATE,
    ]


def test_a_process_killed_while_saving_leaves_a_sound_newest_checkpoint(s3_server: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SAVE_FOREVER, s3_server],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=dict(os.environ),
    )
    try:
        assert process.stdout is not None
        done = [int(process.stdout.readline()) for _ in range(3)]
        time.sleep(0.05)  # into the next save
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    store = open_store(s3_server)
    resumed = CheckpointStore(store, spec_digest=DIGEST, keep=2)
    restored = resumed.restore_latest()
    assert restored is not None
    checkpoint, state = restored
    assert checkpoint.step >= done[-1]
    assert bool((state["w"] == checkpoint.step).all())
    save(resumed, checkpoint.step + 1, torch.zeros(1))
    assert [c.step for c in resumed.list()] == [checkpoint.step, checkpoint.step + 1]
    assert len(store.list(records.CHECKPOINTS)) == 4
    client = objects._s3()
    assert not client.list_multipart_uploads(Bucket="mcf").get("Uploads")
