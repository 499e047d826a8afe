"""What a test session leaves behind on the machine: processes, mounts, files in /dev/shm.

Every process that tests start inherits MCF_TEST_SESSION in its environment; that is how they are known, also those
whose parents have gone.
"""

import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

import psutil

MARK = "MCF_TEST_SESSION"
MEMORY = Path("/dev/shm")
# How what our programs make there is called; a browser on the same desk makes other things.
OURS = ("mcf-", "sem.", "PostgreSQL.", "torch_")
# A process that has been told to end may still be at it.
PATIENCE_SECONDS = 10.0
# Nodes of the test cluster, and images that are built beside a session, are not its own: mounts come and go there.
CONTAINERS = ("/run/mcf-node", "/var/lib/mcf-cluster/", "/var/lib/containers/")


class Leftovers:
    """What has come since this was made, and is still there."""

    def __init__(self) -> None:
        self._session = os.environ[MARK] = uuid.uuid4().hex
        self._mounts, self._files = _mounts(), _files()

    def found(self) -> list[str]:
        """One line for each, after those that are ending have had time to."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (left := self._look()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left

    def _look(self) -> list[str]:
        left = [f"process {pid}: {command}" for pid, command in self._processes().items()]
        left += [f"mount {mount}" for mount in sorted(_mounts() - self._mounts)]
        return left + [f"file {file}" for file in sorted(_files() - self._files)]

    def _processes(self) -> dict[int, str]:
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                mine = process.environ().get(MARK) == self._session
                if mine and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                    found[process.pid] = f"{' '.join(process.cmdline())[:200]} ({process.status()})"
        return found


def outlives() -> dict[str, str]:
    """The environment for what is meant to be there after this session, as a node that is started again."""
    # Nor does it keep its temporary files where this session's are removed.
    return {name: value for name, value in os.environ.items() if name not in (MARK, "TMPDIR")}


def _mounts() -> set[str]:
    places = {partition.mountpoint for partition in psutil.disk_partitions(all=True)}
    return {place for place in places if not place.startswith(CONTAINERS)}


def _files() -> set[str]:
    return {str(file) for file in MEMORY.glob("*") if file.name.startswith(OURS)}
