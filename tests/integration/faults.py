"""Faults of the world around a run: an object store that answers 503, a disk that is full."""

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Gateway:
    """A TCP way to a server, at its own address. While `closed` every request is answered with 503.

    A request in which the text `held` occurs gets no answer at all.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._host, self._port = host, port
        self._listener = socket.create_server((host, 0))
        self._open: set[socket.socket] = set()
        self.closed, self.held = False, b""
        self.refused = 0
        """Requests answered with 503."""
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        """From now on; requests that are under way are cut off."""
        self.closed = True
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._refuse if self.closed else self._pass, args=[client], daemon=True).start()

    def _refuse(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.recv(1 << 16)
            client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.refused += 1
            while client.recv(1 << 16):  # or what was not read would reset the connection before the answer is seen
                pass

    def _pass(self, client: socket.socket) -> None:
        # Whoever asks when the server has gone is hung up on.
        with client, contextlib.suppress(OSError), socket.create_connection((self._host, self._port)) as server:
            self._open |= {client, server}
            back = threading.Thread(target=_copy, args=[server, client], daemon=True)
            back.start()
            _copy(client, server, self)
            back.join()
            self._open -= {client, server}


def _copy(source: socket.socket, sink: socket.socket, gateway: Gateway | None = None) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            if not (gateway and gateway.held and gateway.held in data):
                sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of its own, which only root can make."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "mcf-test", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small disk: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Write until nothing is left; returns the file that takes up the room."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(4096))
    return filler
