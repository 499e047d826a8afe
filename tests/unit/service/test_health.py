"""Probes answer for the service alone: whatever hangs behind it takes no replica out of service."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from service import __main__ as main
from service.api import health
from service.runs import service as runs
from service.settings import Settings
from tests.unit.service.test_api import Scene
from trainer.store import objects


@pytest.fixture
def scene(settings: Settings) -> Iterator[Scene]:
    made = Scene(settings)
    yield made
    made.db.engine.dispose()


def test_a_store_that_hangs_leaves_the_service_ready_and_is_asked_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, asked = threading.Event(), 0

    def hang(uri: str) -> None:
        nonlocal asked
        asked += 1
        released.wait(30)

    monkeypatch.setattr(health, "_touch", hang)
    monkeypatch.setattr(health, "PROBE_SECONDS", 0.2)
    try:
        for _ in range(8):
            answer = scene.http.get("/readyz")
            assert (answer.status_code, answer.json()["database"]) == (200, "ok")
            assert answer.json()["store"] == "no answer yet"
        assert asked == 1
    finally:
        released.set()
    deadline = time.monotonic() + 5
    while scene.http.get("/readyz").json()["store"] != "ok":
        assert time.monotonic() < deadline


def test_pages_that_all_wait_for_the_store_do_not_make_the_service_look_dead(
    scene: Scene, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = scene.http.post("/v1/experiments", json=spec).json()["arms"][0]["trials"][0]["run_id"]
    released = threading.Event()
    monkeypatch.setattr(runs, "list_checkpoints", lambda store: released.wait(30) and [])

    async def probe() -> list[int]:
        transport = httpx2.ASGITransport(app=scene.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            waiting = [asyncio.create_task(client.get(f"/v1/runs/{run}/checkpoints")) for _ in range(60)]
            await asyncio.sleep(0.5)
            try:
                answers = [await asyncio.wait_for(client.get(path), 8) for path in ("/healthz", "/readyz")]
            finally:
                released.set()
            await asyncio.gather(*waiting)
            return [answer.status_code for answer in answers]

    assert asyncio.run(probe()) == [200, 200]


def test_the_service_gives_a_silent_store_seconds_and_not_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "patience", objects.patience)
    monkeypatch.setattr(main.uvicorn, "run", lambda *args, **options: None)
    db = SimpleNamespace(migrate=lambda: None)
    monkeypatch.setattr(main, "create_app", lambda settings: SimpleNamespace(state=SimpleNamespace(db=db)))
    monkeypatch.setattr(main, "_log_as_json", lambda: None)
    main.main()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mcf")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mcf")
        monkeypatch.delenv("AWS_MAX_ATTEMPTS", raising=False)
        objects._s3.cache_clear()
        began = time.monotonic()
        with pytest.raises(objects.StorageError):
            objects.open_store("s3://bucket/prefix").get("ready")
        assert time.monotonic() - began < 15
    objects._s3.cache_clear()
