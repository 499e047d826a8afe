"""torchrun whose workers are forked from a process that has loaded torch, and their module, already.

    python -m trainer.elastic.forked OPTIONS        what torchrun does with these options; -m MODULE is needed

Loading is most of what a group waits for when it forms anew, and each worker of a node would do it for itself.
"""

import os
import signal
import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing import forkserver, resource_tracker, util
from typing import Any

from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from trainer.elastic.kills import count_kills


def load(module: str) -> None:
    """Start the process that workers are forked from; it loads what they need while the nodes meet.

    It is a fork of this one, which has torch, and would be a new interpreter otherwise. So this one must not have
    threads yet: what they hold would be held in the fork for ever.
    """
    count_kills()
    forkserver.set_forkserver_preload(["trainer.elastic.tied", __name__, module])
    resource_tracker.ensure_running()
    spawn = util.spawnv_passfds
    util.spawnv_passfds = _fork  # type: ignore[assignment]  # its own type is that one function
    try:
        forkserver.ensure_running()
    finally:
        util.spawnv_passfds = spawn


def launch(options: Namespace) -> None:
    """What torchrun does with these options, but for `--start-method`. Raises what it raises."""
    config, _, _ = config_from_args(options)
    config.start_method = "forkserver"
    elastic_launch(config, work)(options.training_script, *options.training_script_args)


def work(module: str, *arguments: str) -> None:
    """A worker: what `python -m MODULE ARGUMENTS` does."""
    sys.exit(import_module(module).main(arguments))


def main() -> int:
    options = parse_args(None)
    load(options.training_script)
    launch(options)
    return 0


def _fork(path: bytes, arguments: Sequence[Any], files: Sequence[int]) -> int:
    """Do in a fork what `python OPTIONS -c PROGRAM` would do; stands in for multiprocessing's spawnv_passfds."""
    if pid := os.fork():
        return pid
    try:
        for number in signal.SIGTERM, signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
        inherited = {int(file) for file in os.listdir("/proc/self/fd")}
        for file in inherited - {0, 1, 2, *files}:
            with suppress(OSError):  # that of the listing itself
                os.close(file)
        exec(arguments[-1], {})
    except SystemExit:
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
