"""The folder of one `mcf up`: its ports and keys, chosen once, and the lock that keeps a second one out."""

import fcntl
import os
import random
import secrets
import socket
from pathlib import Path

from trainer.contract.frozen import Frozen

DEFAULT = Path(".mcf")
STATE = "up.json"
BUCKET = "mcf"


class AlreadyUp(Exception):
    """Another `mcf up` holds this folder."""


class Up(Frozen):
    """Content of up.json, readable by its owner only: where everything is, and the keys to it."""

    url: str
    tracking_uri: str
    store: str
    """Address below which runs are kept, such as s3://mcf."""
    aws: dict[str, str]
    """Variables with which an S3 client finds the object store; empty when it is not ours."""
    token: str | None = None
    pid: int


class Home:
    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._lock: int | None = None

    def take(self) -> None:
        """Holds the folder until this process ends. Raises AlreadyUp with the other one's address."""
        self._lock = self._locked()
        if self._lock is None:
            other = self.read()
            where = f" at {other.url} (process {other.pid})" if other else ""
            raise AlreadyUp(
                f"mcf up is already running in {self.folder}{where}\nUse that one, or choose another folder with --dir."
            )

    def is_taken(self) -> bool:
        lock = self._locked()
        if lock is not None:
            os.close(lock)
        return lock is None

    def _locked(self) -> int | None:
        """A descriptor that holds the folder while it is open; None when somebody else does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / "up.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    def read(self) -> Up | None:
        """What the last `mcf up` here wrote down; it may have ended since."""
        path = self.folder / STATE
        return Up.model_validate_json(path.read_bytes()) if path.exists() else None

    def choose(self, *, s3: str | None) -> Up:
        """Ports and keys: those of last time where they can be had, else new ones; written to up.json."""
        last = self.read()
        aws = last.aws if last else {}
        taken: set[int] = set()

        def place(old: str | None) -> str:
            port = int(old.rpartition(":")[2]) if old else 0
            while port in taken or not _is_free(port):
                # Below the range the kernel hands out, so that no outgoing connection sits on the port
                # while its owner is being restarted.
                port = random.randint(20_000, 32_000)
            taken.add(port)
            return f"http://127.0.0.1:{port}"

        up = Up(
            url=place(last.url if last else None),
            tracking_uri=place(last.tracking_uri if last else None),
            store=s3.rstrip("/") if s3 else f"s3://{BUCKET}",
            aws={}
            if s3
            else {
                "AWS_ENDPOINT_URL": place(aws.get("AWS_ENDPOINT_URL")),
                "AWS_ACCESS_KEY_ID": aws.get("AWS_ACCESS_KEY_ID") or secrets.token_hex(8),
                "AWS_SECRET_ACCESS_KEY": aws.get("AWS_SECRET_ACCESS_KEY") or secrets.token_hex(20),
                "AWS_REGION": "us-east-1",
            },
            token=os.environ.get("MCF_TOKEN"),
            pid=os.getpid(),
        )
        self._write(up)
        return up

    def _write(self, up: Up) -> None:
        aside = self.folder / f".{STATE}"
        with open(aside, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(up.model_dump_json(indent=2))
        aside.replace(self.folder / STATE)


def _is_free(port: int) -> bool:
    if port == 0:
        return False
    with socket.socket() as probe:
        # As servers do: a port whose last connections are still winding down is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
