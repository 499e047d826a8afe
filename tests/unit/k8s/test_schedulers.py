"""What the schedulers make of an API server's answers; tests/cluster asks a real one."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from kubernetes import client

from k8s.cluster import ClusterAway
from k8s.jobset_scheduler import JobSetScheduler
from k8s.pools import Pool
from k8s.scheduler import ClusterScheduler
from k8s.volcano_scheduler import VolcanoScheduler
from tests.unit.k8s.test_manifests import CPU, app_and_pool

PATHS = {
    JobSetScheduler: "/apis/jobset.x-k8s.io/v1alpha2/namespaces/mcf/jobsets",
    VolcanoScheduler: "/apis/batch.volcano.sh/v1alpha1/namespaces/mcf/jobs",
}


class Answers(BaseHTTPRequestHandler):
    """Creates each object once; has no others."""

    sent: list[tuple[str, str]] = []
    forbidden = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        what = self.path, json.loads(body)["metadata"]["name"]
        status = 403 if self.forbidden else 409 if what in self.sent else 201
        self.sent.append(what)
        self._say(status, {"kind": "Status"} if status != 201 else json.loads(body))

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        is_list = bool(query) or path.endswith(("/events", "/nodes"))
        self._say(200 if is_list else 404, {"items": []} if is_list else {"kind": "Status"})

    def _say(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def answers() -> Iterator[tuple[type[Answers], client.ApiClient]]:
    class Fresh(Answers):
        sent: list[tuple[str, str]] = []

    with ThreadingHTTPServer(("127.0.0.1", 0), Fresh) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield Fresh, client.ApiClient(client.Configuration(host=f"http://127.0.0.1:{server.server_port}"))
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", PATHS)
def test_an_attempt_that_is_there_already_is_adopted(
    kind: type[ClusterScheduler], answers: tuple[type[Answers], client.ApiClient]
) -> None:
    seen, api = answers
    scheduler = kind("mcf", {"a100-spot": Pool(**CPU)}, "mcf", api)
    app, _, _ = app_and_pool(CPU, {})
    names = [scheduler.submit(app, {}) for _ in range(2)]
    assert names == [app.name, app.name]
    assert seen.sent == [(PATHS[kind], f"mcf-{app.name}")] * 2
    seen.forbidden = True
    with pytest.raises(ClusterAway, match="would not create a job: 403"):
        scheduler.submit(app, {})


@pytest.mark.parametrize("kind", PATHS)
def test_an_attempt_that_is_not_there_is_nothing(
    kind: type[ClusterScheduler], answers: tuple[type[Answers], client.ApiClient]
) -> None:
    assert kind("mcf", {}, "mcf", answers[1]).describe("r0-1") is None
