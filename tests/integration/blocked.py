"""Two workers; rank 0 waits where it hears no signal, as in a collective of NCCL.

python -m tests.integration.blocked FOLDER HOW

HOW says what rank 1 does: `waits` where it hears signals; `fails`; or `leaves` in good order, while rank 0 works on for
a while. Before that, each worker writes its process id to a file in FOLDER.
"""

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from trainer.elastic.distributed import joined_world
from trainer.elastic.siblings import LOOK_SECONDS, PATIENCE_SECONDS
from trainer.elastic.stop import exit_on_request


def main(argv: Sequence[str] | None = None) -> int:
    folder, how = argv or sys.argv[1:]
    exit_on_request()
    with joined_world() as world:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True)  # type: ignore[attr-defined]
        aside = Path(folder, f".{world.rank}")
        aside.write_text(str(os.getpid()))
        aside.rename(Path(folder, str(world.rank)))
        if world.rank == 0:
            seconds = 2 * (LOOK_SECONDS + PATIENCE_SECONDS) if how == "leaves" else 300
            with suppress(dist.DistError):
                store.wait(["never"], timedelta(seconds=seconds))
        elif how == "fails":
            raise RuntimeError("an error of its own")
        elif how == "waits":
            time.sleep(300)
    return 0


if __name__ == "__main__":
    sys.exit(main())
