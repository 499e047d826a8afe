"""What a run has left, fetched through the service: what the contract names, whole, and by who may see the run."""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
from sqlalchemy import select, update

from service import downloads
from service.api import runs as api
from service.client import Client, DownloadFailed, NoSuchThing
from service.db import Database
from service.runs import files
from service.settings import Settings
from service.states import RunState, Scope
from service.tables import Run
from tests.unit.service.test_access import FIRST, Guarded, run_of
from tests.unit.service.test_api import Scene
from trainer.contract import records
from trainer.contract.records import Checkpoint
from trainer.store.objects import Store, open_store

WEIGHTS = bytes(range(256)) * 40


class Left(Scene):
    """A service with a run, whose directory is what the test writes."""

    def __init__(self, settings: Settings, spec: dict[str, Any]) -> None:
        super().__init__(settings)
        made = self.http.post("/v1/experiments", json=spec | {"factors": {}, "seeds": 1}).json()
        self.run = run_of(made)
        self.store: Store = open_store(settings.run_uri(self.run))
        self.client = Client("http://localhost")
        self.client._connection._http = cast(httpx2.Client, self.http)

    def files(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/v1/runs/{self.run}/files").json()
        return found

    def get(self, name: str, **headers: str) -> Any:
        return self.http.get(f"/v1/runs/{self.run}/files/{name}", headers=headers)

    def set(self, **values: Any) -> None:
        with self.db.write() as session:
            session.execute(update(Run).where(Run.id == self.run).values(**values))

    def save(self, step: int, data: bytes, *, sha256: str | None = None) -> None:
        folder = records.checkpoint_name(step)
        self.store.put(folder + records.STATE, data)
        marker = Checkpoint(
            step=step, sha256=sha256 or hashlib.sha256(data).hexdigest(), bytes=len(data), spec_digest="0" * 64,
            world_size=1, saved_at=datetime.now(UTC),
        )  # fmt: skip
        self.store.put(folder + records.COMMITTED, marker.model_dump_json().encode())

    def export(self) -> None:
        for name, data in zip(files.ENCODER, (WEIGHTS, b"{}", b"# card"), strict=True):
            self.store.put(name, data)


@pytest.fixture
def left(settings: Settings, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Left]:
    monkeypatch.setattr(downloads, "PAUSE_SECONDS", 0)
    made = Left(settings, spec)
    yield made
    made.db.engine.dispose()


def test_only_what_the_contract_names_is_listed_and_served(left: Left) -> None:
    left.export()
    left.save(5, b"five")
    left.save(10, b"ten!")
    left.store.put(records.checkpoint_name(12) + records.STATE, b"half of it")
    for name in records.RESULT, records.SPEC, "sessions/0001.json", "stages/alignment/result.json":
        left.store.put(name, b"{}")
    hidden = "lock", "unsent.json", "unsent/a.png", "stages/alignment/checkpoints/1/state.pt", "export/other.bin"
    for name in hidden:
        left.store.put(name, b"secret")
    found = left.files()
    assert [(file["name"], file["kind"], file["step"]) for file in found["files"]] == [
        ("export/model.safetensors", "encoder", None), ("export/config.json", "encoder", None),
        ("export/README.md", "encoder", None), ("checkpoints/000000010/state.pt", "checkpoint", 10),
        ("checkpoints/000000005/state.pt", "checkpoint", 5), ("result.json", "result", None),
        ("checkpoints/000000005/COMMITTED", "record", None), ("checkpoints/000000010/COMMITTED", "record", None),
        ("sessions/0001.json", "record", None), ("spec.json", "record", None),
        ("stages/alignment/result.json", "record", None),
    ]  # fmt: skip
    assert found["missing"] == {}
    for file in found["files"]:
        answer = left.get(file["name"])
        assert (answer.status_code, len(answer.content)) == (200, file["bytes"])
        assert answer.headers["Content-Length"] == str(file["bytes"])
        assert answer.headers["Content-Disposition"] == f'attachment; filename="{file["save_as"]}"'
    assert found["files"][3]["save_as"] == f"{left.run}-step-10.pt"
    outside = (
        "..%2f..%2fmcf.db",
        "export/..%2fspec.json",
        "%2fetc%2fpasswd",
        "export//model.safetensors",
        "export",
        "%00",
    )
    for name in *hidden, *outside, "x" * 5000:
        assert left.get(name).status_code == 404, name
    assert "steps 5, 10" in left.get("checkpoints/000000012/state.pt").json()["detail"]


def test_what_is_not_there_yet_is_said_with_the_state_of_the_run_and_when_it_will_be(left: Left) -> None:
    left.set(state=RunState.RUNNING, step=5, train_seconds=600)
    missing = left.files()["missing"]
    assert missing["encoder"] == (
        f"Run {left.run} is running, at step 5 of 10, and has no encoder yet. It has one as soon as it succeeds; "
        "training takes about 10 min more."
    )
    assert "there is one every 20 steps" in missing["checkpoint"]
    for name, kind in ("export/model.safetensors", "encoder"), ("result.json", "result"):
        answer = left.get(name)
        assert (answer.status_code, answer.json()["detail"]) == (404, missing[kind])
    with pytest.raises(NoSuchThing, match="is running, at step 5 of 10, and has no encoder yet"):
        left.client.get_encoder(left.run)
    left.set(state=RunState.FAILED, reason="the loss is not finite")
    assert "is failed, at step 5 of 10 (the loss is not finite), and has no result" in left.files()["missing"]["result"]
    left.set(weights_of="r0123456789ab")
    with pytest.raises(NoSuchThing, match=r"run r0123456789ab, which has their checkpoints\. There is no run"):
        left.client.get_checkpoint(left.run)
    assert left.http.get("/v1/runs/r0/files").status_code == 404


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("0-9", 0, 10), ("10200-", 10200, 10240), ("-7", 10233, 10240), ("4095-99999", 4095, 10240)],
)
def test_a_part_is_the_bytes_that_were_asked_for(
    left: Left, asked: str, start: int, end: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "PIECE_BYTES", 4096)
    left.export()
    name = files.ENCODER[0]
    part = left.get(name, Range=f"bytes={asked}")
    assert (part.status_code, part.content) == (206, WEIGHTS[start:end])
    assert part.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(WEIGHTS)}"
    assert part.headers["Content-Length"] == str(end - start)
    # Of another version than the first part was of, there is only the whole.
    tag = part.headers["ETag"]
    assert left.get(name, **{"Range": f"bytes={asked}", "If-Range": tag}).status_code == 206
    assert left.get(name, **{"Range": f"bytes={asked}", "If-Range": '"other"'}).content == WEIGHTS


def test_a_range_that_cannot_be_is_refused_and_one_that_is_not_understood_is_everything(left: Left) -> None:
    left.export()
    for asked in "bytes=10240-", "bytes=99999-100000", "bytes=-0":
        answer = left.get(files.ENCODER[0], Range=asked)
        assert (answer.status_code, answer.json()["error"]) == (416, "no_such_range")
    for asked in "bytes=-", "bytes=9-1", "bytes=0-1,5-6", "lines=1-2", "bytes=1e3-":
        assert left.get(files.ENCODER[0], Range=asked).content == WEIGHTS


def test_no_more_than_a_piece_is_read_at_a_time(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "PIECE_BYTES", 1000)
    left.export()
    asked: list[int] = []
    read = files.Opened.read
    monkeypatch.setattr(files.Opened, "read", lambda self, at, size: asked.append(size) or read(self, at, size))
    assert left.get(files.ENCODER[0]).content == WEIGHTS
    assert asked == [1000] * 10 + [240]


def test_a_token_fetches_from_the_runs_of_its_project_alone(
    settings: Settings, database: Database, spec: dict[str, Any]
) -> None:
    guarded = Guarded(settings, database)
    run = run_of(guarded.submit(FIRST, spec, params={"project": "theirs"}))
    open_store(settings.run_uri(run)).put(records.RESULT, b"{}")
    for project, status in ("theirs", 200), ("ours", 404):
        secret = guarded.token(Scope.READ, project)
        for path in f"/v1/runs/{run}/files", f"/v1/runs/{run}/files/result.json", f"/runs/{run}/files":
            assert guarded.ask(secret, "GET", path).status_code == status, (project, path)


def test_the_page_links_what_there_is_and_says_what_there_is_not(left: Left) -> None:
    left.save(10, WEIGHTS)
    text = left.http.get(f"/runs/{left.run}/files").text
    address = f"/v1/runs/{left.run}/files/checkpoints/000000010/state.pt"
    assert f'href="{address}"' in text
    assert "10.2 kB" in text
    assert "has no encoder yet" in text
    assert "COMMITTED" not in text
    assert left.http.get(address).content == WEIGHTS


def test_the_client_fetches_each_kind_under_a_telling_name(
    left: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    left.export()
    left.save(5, b"five")
    left.save(10, WEIGHTS)
    left.store.put(records.RESULT, b'{"steps": 10}')
    told: list[tuple[int, int]] = []
    folder = left.client.get_encoder(left.run[:-1], told=lambda done, of: told.append((done, of)))
    assert folder == Path(f"{left.run}-encoder")
    assert {file.name for file in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert told[-1] == (len(WEIGHTS) + 8, len(WEIGHTS) + 8)
    assert left.client.get_checkpoint(left.run).read_bytes() == WEIGHTS
    assert left.client.get_checkpoint(left.run, tmp_path, step=5) == tmp_path / f"{left.run}-step-5.pt"
    assert json.loads(left.client.get_result(left.run, "deep/er/numbers.json").read_text()) == {"steps": 10}
    for again in lambda: left.client.get_encoder(left.run), lambda: left.client.get_checkpoint(left.run):
        with pytest.raises(DownloadFailed, match="is there already"):
            again()
    with pytest.raises(NoSuchThing, match="of step 7; it has those of the steps 5, 10"):
        left.client.get_checkpoint(left.run, step=7)


def test_what_is_damaged_cut_or_changed_leaves_nothing_here(
    left: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "PIECE_BYTES", 1000)
    left.save(10, WEIGHTS, sha256="0" * 64)
    with pytest.raises(DownloadFailed, match="its marker says 0000"):
        left.client.get_checkpoint(left.run, tmp_path)
    left.save(10, WEIGHTS)
    with pytest.raises(DownloadFailed, match="cannot be written"):
        left.client.get_checkpoint(left.run, "/proc/nowhere/state.pt")
    read = files.Opened.read

    def replaced(self: files.Opened, at: int, size: int) -> bytes:
        if at == 3000:
            left.store.put(self.file.name, WEIGHTS[::-1])
        return read(self, at, size)

    monkeypatch.setattr(files.Opened, "read", replaced)
    with pytest.raises(DownloadFailed):
        left.client.get_checkpoint(left.run, tmp_path)
    assert list(tmp_path.glob("*step-10*")) == list(tmp_path.glob(".*step*")) == []


def test_a_checkpoint_of_many_pieces_comes_from_a_real_s3_server(
    settings: Settings, spec: dict[str, Any], s3_server: str, tmp_path: Path
) -> None:
    left = Left(settings.model_copy(update={"store": s3_server}), spec)
    state = bytes(range(251)) * 40_000  # 10 MB: three pieces, no two of which are equal
    left.save(3, state)
    left.export()
    left.store.put(records.RESULT, b"")
    assert left.client.get_checkpoint(left.run, tmp_path).read_bytes() == state
    assert left.client.get_result(left.run, tmp_path).read_bytes() == b""
    assert (left.client.get_encoder(left.run, tmp_path / "it") / "model.safetensors").read_bytes() == WEIGHTS
    name = f"{records.checkpoint_name(3)}{records.STATE}"
    assert left.get(name, Range="bytes=4194300-4194310").content == state[4194300:4194311]
    assert left.get(name, Range="bytes=-5").content == state[-5:]


def test_a_transfer_that_is_cut_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "PAUSE_SECONDS", 0)
    asked: list[str | None] = []
    file = {
        "name": "checkpoints/1/state.pt",
        "kind": "checkpoint",
        "bytes": len(WEIGHTS),
        "step": 1,
        "save_as": "it.pt",
    }

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("/files"):
            return httpx2.Response(200, json={"run_id": "r1", "files": [file], "missing": {}, "weights_of": None})
        if not request.url.path.endswith("/state.pt"):
            return httpx2.Response(200, json={"kind": "run", "id": "r1", "name": None})
        asked.append(request.headers.get("Range"))
        start = int(asked[-1][6:-1]) if asked[-1] else 0
        assert request.headers.get("If-Range", '"a"') == '"a"'

        def cut() -> Iterator[bytes]:
            yield WEIGHTS[start : start + 4000]
            if start + 4000 < len(WEIGHTS):
                raise httpx2.ReadError("cut")

        return httpx2.Response(206 if start else 200, headers={"ETag": '"a"'}, content=cut())

    client = Client("http://there", warn=lambda told: None)
    client._connection._http = httpx2.Client(base_url="http://there", transport=httpx2.MockTransport(answer))
    assert client.get_checkpoint("r1", tmp_path).read_bytes() == WEIGHTS
    assert asked == [None, "bytes=4000-", "bytes=8000-"]


def test_a_run_that_measures_the_weights_of_another_leads_to_its_checkpoints(
    settings: Settings, spec: dict[str, Any], tmp_path: Path
) -> None:
    other = Left(settings, spec)
    other.save(10, b"the weights")
    made = other.http.post("/v1/experiments", json=spec | {"factors": {}, "seeds": [7]}).json()
    with other.db.write() as session:
        session.execute(update(Run).where(Run.id == run_of(made)).values(weights_of=other.run))
        assert session.scalar(select(Run.weights_of).where(Run.id == run_of(made))) == other.run
    there = other.client.get_checkpoint(run_of(made), tmp_path)
    assert (there.name, there.read_bytes()) == (f"{other.run}-step-10.pt", b"the weights")
