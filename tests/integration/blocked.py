"""A worker that waits where no signal is heard, as in a collective of NCCL: python -m tests.integration.blocked FOLDER

Rank 1 waits where it is heard. Each leaves a file with its process id in FOLDER once it waits.
"""

import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from trainer.distributed import joined_world
from trainer.stop import exit_on_request


def main(argv: Sequence[str] | None = None) -> int:
    [folder] = argv or sys.argv[1:]
    exit_on_request()
    with joined_world() as world:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True)  # type: ignore[attr-defined]
        aside = Path(folder, f".{world.rank}")
        aside.write_text(str(os.getpid()))
        aside.rename(Path(folder, str(world.rank)))
        if world.rank == 1:
            time.sleep(300)
        store.wait(["never"], timedelta(seconds=300))
    return 0


if __name__ == "__main__":
    sys.exit(main())
