"""The folder of one `mcf up`: its ports and keys, chosen once, and the lock that keeps a second one out.

Commands find it by the service that they talk to: in the folder that they run in, or by a link in the cache folder.
"""

import fcntl
import os
import random
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from service.cli.children import clean_environment
from service.client import Client, ServiceAway
from service.connection import UP_LOCK, up_place
from trainer.contract.frozen import Frozen
from trainer.store.loopback import LOOPBACK

DEFAULT = Path(".mcf")
STATE = "up.json"
BUCKET = "mcf"
# Names that an MLflow server resolves.
MLFLOW_NAMES = ("models:/", "runs:/", "mlflow:")


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
        lock = os.open(self.folder / UP_LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    def can_be_found(self, up: Up, *, yes: bool) -> None:
        """Whether commands that run elsewhere find this folder by the address of its service."""
        place = up_place(up.url)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        if yes:
            place.symlink_to(self.folder)

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


def reach(client: Callable[[], Client], *addresses: str | None) -> None:
    """Let this process, and what it starts, reach what is in the store or the MLflow of the `mcf up` it talks to."""
    named = [address for address in addresses if address and address.startswith(("s3://", *MLFLOW_NAMES))]
    if not named or (up := _serving(client)) is None:
        return
    by_name = any(address.startswith(MLFLOW_NAMES) for address in named) and "MLFLOW_TRACKING_URI" not in os.environ
    if by_name:
        os.environ["MLFLOW_TRACKING_URI"] = up.tracking_uri
    # A name there leads to an address in the store.
    if up.aws and (by_name or any(f"{address}/".startswith(f"{up.store}/") for address in named)):
        environment = clean_environment(os.environ, keep=("MLFLOW_",)) | up.aws
        os.environ.clear()
        os.environ.update(environment)


def _serving(client: Callable[[], Client]) -> Up | None:
    """The `mcf up` of the service that is meant here, where it is one."""
    with suppress(ServiceAway):
        url = client().url
        for folder in DEFAULT, up_place(url):
            up = Home(folder).read() if folder.is_dir() else None
            if up and urlsplit(url).hostname in LOOPBACK and urlsplit(up.url).port == urlsplit(url).port:
                return up
    return None


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
