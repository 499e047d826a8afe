"""A service behind a CA of one's own: trusted when that is named, and else refused for what it is."""

import http.server
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import Client, ServiceAway
from service.connection import CA_FILES, Untrusted


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """Address of a server with a certificate of its own, and the file of that."""
    for name in CA_FILES:
        monkeypatch.delenv(name, raising=False)
    certificate, key = tmp_path / "ca.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_port}", certificate
    server.shutdown()
    server.server_close()


def test_a_certificate_that_nobody_vouches_for_is_told_as_such(private: tuple[str, Path]) -> None:
    with pytest.raises(Untrusted, match="set SSL_CERT_FILE") as caught:
        Client(private[0]).ping()
    assert "mcf up" not in str(caught.value)


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_a_ca_of_ones_own_is_named_by_the_usual_variables(
    private: tuple[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, str(private[1]))
    Client(private[0]).ping()
    monkeypatch.setenv(name, str(private[1].with_name("none.pem")))
    with pytest.raises(Untrusted, match=f"{name}=.*none.pem: No such file"):
        Client(private[0])


def test_nobody_is_still_nobody() -> None:
    with pytest.raises(ServiceAway, match="mcf up"):
        Client("https://127.0.0.1:9").ping()
