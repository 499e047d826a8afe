"""torchrun whose workers are forked from a process that has loaded torch, and their module, already.

Loading is most of what a group waits for when it forms anew, and the workers of a node would each do it for themselves.
"""

import sys
from argparse import Namespace
from importlib import import_module
from multiprocessing import forkserver

from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args


def load(module: str) -> None:
    """Start the process that workers are forked from; it loads what they need while the nodes meet."""
    forkserver.set_forkserver_preload(["trainer.elastic.tied", __name__, module])
    forkserver.ensure_running()


def launch(options: Namespace) -> None:
    """What torchrun does with these options, but for `--start-method`. Raises what it raises."""
    config, _, _ = config_from_args(options)
    config.start_method = "forkserver"
    elastic_launch(config, work)(options.training_script, *options.training_script_args)


def work(module: str, *arguments: str) -> None:
    """A worker: what `python -m MODULE ARGUMENTS` does."""
    sys.exit(import_module(module).main(arguments))
