"""What webhooks are told: each thing once, signed, until the receiver takes it, and nobody waits for a receiver."""

import contextlib
import html
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import pytest
from sqlalchemy import select, update
from typer.testing import CliRunner

from service.cli.main import app as mcf
from service.db import Database
from service.experiments import actions
from service.launching.port import JobState
from service.notify import notifier, posting, service
from service.schemas.webhooks import NewWebhook
from service.settings import Settings
from service.states import Scope
from service.tables import AuditEntry, Delivery, Webhook
from tests.unit.service.bench import Bench, Killed
from tests.unit.service.test_access import FIRST, Guarded
from tests.unit.service.test_reconciler import finish_all

MINUTE = 60.0


@dataclass
class Post:
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass
class Receiver:
    """A real HTTP server that keeps what it gets and answers as the test says."""

    posts: list[Post] = field(default_factory=list)
    status: int = 200
    location: str = ""
    slow: threading.Event = field(default_factory=threading.Event)
    """Set = answers at once."""
    server: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/services/T0/secret-path"

    def events(self) -> list[str]:
        return [post.headers["Mcf-Event"] for post in self.posts]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = Receiver()
    made.slow.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.posts.append(Post(dict(self.headers), body))
            made.slow.wait(20)
            self.send_response(made.status)
            if made.location:
                self.send_header("Location", made.location)
            self.end_headers()
            self.wfile.write(b"said by the receiver")

        def log_message(self, *args: Any) -> None:
            pass

    made.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.slow.set()
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        work_dir=tmp_path, max_concurrent_runs=100, reconcile_threads=16, public_url="https://mcf.example.org/"
    )


def webhook(db: Database, url: str, project: str | None = None, **more: Any) -> Webhook:
    return service.create(db, NewWebhook(url=url, **more), project, "ann")


def deliveries(db: Database) -> list[Delivery]:
    with db.read() as session:
        return list(session.scalars(select(Delivery).order_by(Delivery.created_at, Delivery.event)))


def verify(secret: str, header: str, body: bytes, now: float) -> bool:
    """As docs/notify.md has it."""
    text = Path("docs/notify.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code, scope)
    verified: bool = scope["verify"](secret, header, body, now)
    return verified


# ---------------------------------------------------------------- what is told


def test_an_end_is_told_once_with_its_answer_and_a_signature_that_is_verified(
    bench: Bench, receiver: Receiver, spec: dict[str, Any]
) -> None:
    made = webhook(bench.db, receiver.url)
    webhook(bench.db, receiver.url, project="other")
    experiment = bench.submit(spec | {"seeds": 3})
    finish_all(bench)
    bench.go(5)
    [post] = receiver.posts
    told = post.json
    assert (told["event"], told["counts"], told["reason"]) == ("ended", {"succeeded": 6}, "")
    assert told["experiment"] == {
        "id": experiment, "name": "bench", "project": "default", "state": "succeeded", "created_by": "",
        "url": f"https://mcf.example.org/experiments/{experiment}",
    }  # fmt: skip
    assert told["answer"].startswith("Best arm: mask_ratio=0.75. Is the difference real? ")
    assert told["cost"]["unit"] == "process-hours"
    assert told["id"] == post.headers["Mcf-Delivery"] == deliveries(bench.db)[0].id
    assert told["text"].startswith("bench has ended: succeeded (6 succeeded).\nBest arm")
    now = bench.clock().timestamp()
    assert verify(made.secret, post.headers["Mcf-Signature"], post.body, now)
    for secret, body, late in (("x", post.body, 0), (made.secret, b"{}", 0), (made.secret, post.body, 301)):
        assert not verify(secret, post.headers["Mcf-Signature"], body, now + late)


def test_failures_are_told_once_and_again_after_a_retry(bench: Bench, receiver: Receiver, spec: dict[str, Any]) -> None:
    webhook(bench.db, receiver.url)
    experiment = bench.submit(spec)

    def fail_all() -> None:
        bench.go(3)
        for name in bench.cluster.live():
            bench.cluster.fail(name)
        bench.go(8)

    fail_all()
    assert sorted(receiver.events()) == ["ended", "failed"], "four runs have failed"
    [failed] = [post.json for post in receiver.posts if post.json["event"] == "failed"]
    assert failed["reason"] == "the loss is not finite"
    assert failed["run_id"] in {run.id for run in bench.runs()}
    assert receiver.posts[-1].json["experiment"]["state"] == "failed"
    actions.retry(bench.db, bench.settings, experiment)
    bench.reconciler.wake()
    fail_all()
    assert sorted(receiver.events()) == ["ended", "ended", "failed", "failed"]


def test_two_services_tell_each_thing_once(bench: Bench, receiver: Receiver, spec: dict[str, Any]) -> None:
    for _ in range(2):
        webhook(bench.db, receiver.url)
    bench.submit(spec | {"seeds": 6})
    other = bench.another()

    def both() -> bool:
        ticks = [threading.Thread(target=service.tick) for service in (bench.reconciler, other)]
        for tick in ticks:
            tick.start()
        for tick in ticks:
            tick.join()
        other.drain()
        for name in bench.cluster.live():
            bench.cluster.fail(name)
        return all(run.settled for run in bench.runs())

    bench.go_until(both)
    for _ in range(8):
        both()
        bench.go()
    other.stop()
    assert sorted(receiver.events()) == ["ended", "ended", "failed", "failed"]
    assert len({post.headers["Mcf-Delivery"] for post in receiver.posts}) == 4


def test_what_was_cancelled_has_ended_and_says_by_whom(bench: Bench, receiver: Receiver, spec: dict[str, Any]) -> None:
    webhook(bench.db, receiver.url, events=["ended"], form="slack")
    experiment = bench.submit(spec | {"name": "a-b"})
    bench.go(3)
    actions.cancel(bench.db, experiment, "ann <&>")
    bench.go(8)
    [post] = receiver.posts
    assert set(post.json) == {"text"}, "all that Slack takes"
    assert post.json["text"].splitlines()[0] == "a-b has ended: cancelled (4 cancelled)."
    assert "Reason: cancelled by ann &lt;&amp;&gt;" in post.json["text"]
    assert post.json["text"].endswith(f"<https://mcf.example.org/experiments/{experiment}|Open the page>")


def test_a_run_that_waits_too_long_is_told_once_for_each_stretch(
    bench: Bench, receiver: Receiver, spec: dict[str, Any]
) -> None:
    bench.settings.max_concurrent_runs = 1
    webhook(bench.db, receiver.url, events=["waiting"])
    webhook(bench.db, receiver.url, events=["waiting"], waits_longer_than_minutes=600)
    first = bench.submit(spec | {"factors": {}, "seeds": 1, "name": "first"})
    bench.go(4)
    bench.cluster.train(bench.cluster.live()[0], 1)
    bench.go(1)
    second = bench.submit(spec | {"name": "second", "factors": {}, "seeds": [7, 8]})
    # Its second run waits for its own concurrency: nobody else could help that.
    modest = bench.submit(spec | {"name": "modest", "factors": {}, "seeds": [3, 4], "concurrency": 1})
    bench.go(11, seconds=5 * MINUTE)
    assert receiver.posts == []
    bench.go(12, seconds=5 * MINUTE)
    told = {post.json["experiment"]["id"]: post.json for post in receiver.posts}
    assert (set(told), len(receiver.posts)) == ({second, modest}, 2), "nobody tells of the one that trains"
    assert first not in told
    assert told[second]["reason"] == "all 1 places are taken (MCF_MAX_CONCURRENT_RUNS)"
    assert told[second]["text"].startswith("second waits (2 queued).")


def test_a_run_without_a_node_waits_and_one_that_its_experiment_holds_back_does_not(
    bench: Bench, receiver: Receiver, spec: dict[str, Any]
) -> None:
    webhook(bench.db, receiver.url, events=["waiting"])
    bench.submit(spec | {"factors": {}, "seeds": [1, 2], "concurrency": 1})
    bench.go(3)
    [name] = bench.cluster.live()
    bench.cluster.train(name, 1)
    bench.go(18, seconds=5 * MINUTE)
    assert receiver.posts == [], "one trains, and the other waits for it as was asked for"
    bench.cluster.succeed(name)
    bench.go(4)
    [name] = bench.cluster.live()
    bench.cluster.jobs[name] = JobState.PENDING
    bench.go(26, seconds=5 * MINUTE)
    [post] = receiver.posts
    assert post.json["run_id"] == name.rpartition("-")[0]
    bench.cluster.jobs[name] = JobState.RUNNING
    bench.cluster.train(name, 1)
    bench.go(2, seconds=MINUTE)
    bench.cluster.jobs[name] = JobState.PENDING  # its nodes were taken back
    bench.go(14, seconds=5 * MINUTE)
    assert receiver.events() == ["waiting", "waiting"], "another stretch"


# ---------------------------------------------------------------- until it is taken


def ended(bench: Bench, spec: dict[str, Any]) -> None:
    bench.submit(spec | {"factors": {}, "seeds": 1})
    finish_all(bench)
    bench.go(4)


def test_a_receiver_that_fails_is_asked_again_with_growing_pauses_and_given_up_after_a_day(
    bench: Bench, receiver: Receiver, spec: dict[str, Any]
) -> None:
    webhook(bench.db, receiver.url)
    receiver.status = 500
    ended(bench, spec)
    began, at = bench.clock(), list[float]()
    while (passed := (bench.clock() - began).total_seconds()) < 26 * 3600:
        count = len(receiver.posts)
        bench.go(seconds=10.0 if passed < 1000 else 300.0)
        at += [(bench.clock() - began).total_seconds()] * (len(receiver.posts) - count)
    pauses = [later - sooner for sooner, later in pairwise(at)]
    assert pauses[:3] == pytest.approx([30, 120, 600], abs=11)
    assert pauses[3:] == pytest.approx([3600] * (len(pauses) - 3), abs=301)
    [given_up] = deliveries(bench.db)
    assert (given_up.last_status, given_up.last_error) == (500, "the receiver answered 500; given up")
    assert given_up.done_at
    assert given_up.done_at - given_up.created_at <= notifier.GIVE_UP
    assert len({post.headers["Mcf-Delivery"] for post in receiver.posts}) == 1
    assert len({post.body for post in receiver.posts}) == 1, "each time the same"
    assert len({post.headers["Mcf-Signature"] for post in receiver.posts}) > 1, "signed anew: it has not gone stale"


def test_a_receiver_that_was_away_gets_it_when_it_is_back(
    bench: Bench, receiver: Receiver, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where lines go depends on what was set up before in this process.
    lines: list[str] = []
    write = lambda *words, **more: lines.append(f"{words} {more}")  # noqa: E731
    monkeypatch.setattr(notifier, "log", SimpleNamespace(info=write, warning=write, exception=write))
    made = webhook(bench.db, "http://127.0.0.1:9/services/T0/secret-path")
    ended(bench, spec)
    [waiting] = deliveries(bench.db)
    assert waiting.done_at is None
    assert "no connection" in waiting.last_error
    with bench.db.write() as session:
        session.execute(update(Webhook).values(url=receiver.url))
    bench.go(20)
    assert receiver.events() == ["ended"]
    [taken] = deliveries(bench.db)
    assert (taken.last_status, taken.last_error) == (200, "")
    told = f"{lines} {waiting.last_error}"
    assert taken.id in told
    assert made.secret not in told
    assert "secret-path" not in told


@pytest.mark.parametrize("point", ["before it is sent", "after it was sent"])
def test_a_service_killed_at_any_moment_tells_it_and_tells_which_it_is(
    bench: Bench, receiver: Receiver, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    webhook(bench.db, receiver.url)
    real = posting.post

    def killed(*args: Any) -> Any:
        if point == "after it was sent":
            real(*args)
        raise Killed(point)

    monkeypatch.setattr(notifier, "post", killed)
    bench.submit(spec | {"factors": {}, "seeds": 1})
    bench.go(3)
    for name in bench.cluster.live():
        bench.cluster.succeed(name)
    with pytest.raises(Killed):
        bench.go(8)
    monkeypatch.setattr(notifier, "post", real)
    bench.reconciler.stop()
    other = bench.another()
    bench.start()
    bench.go(5)
    assert len(receiver.posts) == (point == "after it was sent"), "while the lease of the dead one holds"
    for _ in range(40):
        other.tick()
        bench.go()
        other.drain()
    other.stop()
    assert len(receiver.posts) == 1 + (point == "after it was sent")
    assert len({post.headers["Mcf-Delivery"] for post in receiver.posts}) == 1
    assert len({post.body for post in receiver.posts}) == 1


def test_a_receiver_that_is_gone_is_switched_off_until_a_test_succeeds(
    bench: Bench, receiver: Receiver, spec: dict[str, Any]
) -> None:
    made = webhook(bench.db, receiver.url)
    receiver.status = 410
    ended(bench, spec)
    ended(bench, spec | {"name": "again", "seeds": [5]})
    assert receiver.events() == ["ended"], "and nothing is kept for it either"
    assert len(deliveries(bench.db)) == 1
    with bench.db.read() as session:
        assert "answered 410 (gone)" in session.get_one(Webhook, made.id).disabled_reason
    receiver.status = 204
    assert service.test(bench.db, bench.settings, made.id, None).is_ok
    with bench.db.read() as session:
        assert session.get_one(Webhook, made.id).disabled_reason == ""


def test_a_slow_receiver_holds_up_no_run_and_no_other_receiver(
    bench: Bench, receiver: Receiver, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    webhook(bench.db, receiver.url)
    receiver.slow.clear()
    began, looks = time.monotonic(), 0
    for name in "a", "b", "c":
        bench.submit(spec | {"name": name, "factors": {}, "seeds": [ord(name)]})
    monkeypatch.setattr(bench.reconciler._notifier, "drain", lambda: None)
    finish_all(bench)
    for _ in range(50):
        bench.go()
        looks += bool(receiver.posts)
    assert time.monotonic() - began < posting.TIMEOUT_SECONDS
    assert bench.states() == {"succeeded": 3}
    assert looks > 10, "while the receiver has the first of them"
    assert len(receiver.posts) == 1, "one at a time"


def test_a_redirect_is_not_followed(receiver: Receiver, database: Database, settings: Settings) -> None:
    made = webhook(database, receiver.url)
    receiver.status, receiver.location = 302, receiver.url
    answer = service.test(database, settings, made.id, None)
    assert (answer.status, answer.error, answer.said) == (302, "the receiver answered 302", "said by the receiver")
    assert len(receiver.posts) == 1


def test_who_answers_a_byte_at_a_time_is_as_slow_as_who_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(posting, "TOTAL_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def trickle() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                for letter in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100:
                    connection.send(bytes([letter]))
                    time.sleep(0.2)

        thread = threading.Thread(target=trickle)
        thread.start()
        answer = posting.post(f"http://127.0.0.1:{listening.getsockname()[1]}/", "s", "d1", "test", "{}", 0)
        thread.join()
    assert (answer.status, answer.error) == (None, "no whole answer within 1 s")
    assert answer.seconds < 4


# ---------------------------------------------------------------- who may


@pytest.fixture
def guarded(settings: Settings, database: Database) -> Iterator[Guarded]:
    made = Guarded(settings, database)
    yield made
    made.db.engine.dispose()


def test_admins_make_webhooks_and_one_of_a_project_only_for_it(guarded: Guarded, receiver: Receiver) -> None:
    ours, theirs = guarded.token(Scope.ADMIN, "ours"), guarded.token(Scope.ADMIN, "theirs")
    answer = guarded.ask(ours, "POST", "/v1/webhooks", json={"url": receiver.url})
    made = answer.json()
    assert (answer.status_code, made["project"], made["created_by"]) == (201, "ours", "ours admin")
    assert answer.headers["Location"] == f"/v1/webhooks/{made['id']}"
    assert guarded.ask(ours, "POST", "/v1/webhooks", json={"url": receiver.url, "project": "x"}).status_code == 403
    listed = guarded.ask(ours, "GET", "/v1/webhooks").text
    assert made["id"] in listed
    assert made["secret"] not in listed
    assert "secret-path" not in listed, "the address is a secret, too"
    assert guarded.get(theirs, "/v1/webhooks") == {"webhooks": []}
    for method, path in ("POST", "/test"), ("GET", "/deliveries"), ("DELETE", ""):
        assert guarded.ask(theirs, method, f"/v1/webhooks/{made['id']}{path}").status_code == 404
    tried = guarded.ask(ours, "POST", f"/v1/webhooks/{made['id']}/test").json()
    assert (tried["ok"], tried["status"], tried["said"]) == (True, 200, "said by the receiver")
    assert receiver.posts[0].json["event"] == "test"
    assert guarded.ask(ours, "DELETE", f"/v1/webhooks/{made['id']}").status_code == 200
    with guarded.db.read() as session:
        done = [(entry.action, entry.object, entry.asked) for entry in session.scalars(select(AuditEntry))]
    for action in "create", "test", "delete":
        assert (f"webhooks.{action}", made["id"], "") in done


def test_the_command_makes_tests_and_shows_webhooks(
    guarded: Guarded, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(connection: Any, method: str, path: str, **options: Any) -> Any:
        answer = guarded.ask(FIRST, method, path, **options)
        answer.raise_for_status()
        return answer

    monkeypatch.setenv("MCF_URL", "http://localhost")
    monkeypatch.setattr("service.connection.ServiceConnection.call", call)

    def run(*words: str) -> Any:
        return CliRunner().invoke(mcf, ["webhook", *words])

    made = run("create", "--slack", receiver.url, "--on", "ended", "--on", "waiting", "--waits", "30")
    assert made.exit_code == 0, made.output
    assert re.search(r"^mcfwh_\S{43}$", made.stdout, re.MULTILINE), "the secret alone in its line"
    [id] = re.findall(r"w[0-9a-f]{10}", made.stderr)[:1]
    listed = run("list").stdout
    assert id in listed
    assert "ended, waiting (30 min)" in listed
    tried = run("test", id)
    assert (tried.exit_code, receiver.posts[0].json) == (0, {"text": ANY})
    assert "It said: said by the receiver" in tried.stdout
    receiver.status = 404
    assert run("test", id).exit_code == 1
    assert "It was told nothing yet." in run("deliveries", id).stdout
    assert "is deleted" in run("delete", id).stdout
    assert "No webhooks yet" in run("list").stdout


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x/",
        "file:///etc/passwd",
        "http://",
        "https://u:p@x/",
        "http://x:99999/",
        "http://x/ y",
        "//x",
        "http://é",
    ],
)
def test_an_address_that_is_none_is_refused(guarded: Guarded, url: str) -> None:
    answer = guarded.ask(FIRST, "POST", "/v1/webhooks", json={"url": url})
    assert (answer.status_code, answer.json()["problems"][0]["field"]) == (422, "url")


def test_the_page_adds_a_webhook_shows_its_secret_once_and_what_has_not_arrived_and_deletes_it(
    bench: Bench, guarded: Guarded, receiver: Receiver, spec: dict[str, Any]
) -> None:
    def page(method: str = "GET", path: str = "", status: int = 200, **sent: Any) -> str:
        answer = guarded.ask(FIRST, method, f"/webhooks{path}", data=sent, follow_redirects=False)
        assert answer.status_code == status, answer.text
        assert status == 303 or answer.headers["Cache-Control"] == "no-store"
        return html.unescape(answer.text)

    assert 'href="/webhooks"' in guarded.ask(FIRST, "GET", "/").text
    assert "No webhooks yet" in page()
    typed = {"url": receiver.url, "events": ["ended", "waiting"], "waits_longer_than_minutes": "30", "form": "json"}
    made = page("POST", status=201, **typed, project="default")
    [secret] = re.findall(r"mcfwh_[\w-]{43}", made)
    [id] = set(re.findall(r"w[0-9a-f]{10}", made))
    assert receiver.url.removesuffix("/services/T0/secret-path") in made
    assert "ended, waiting (30 min)" in page()

    receiver.status = 500
    ended(bench, spec)
    [post] = receiver.posts
    assert verify(secret, post.headers["Mcf-Signature"], post.body, bench.clock().timestamp())
    [told] = deliveries(bench.db)
    for shown in page(), page(path=f"/{id}"):
        assert "to be sent again" in shown
        assert "the receiver answered 500" in shown
        assert f"{told.next_check_at:%H:%M:%S UTC}" in shown
    assert told.experiment_id in page(path=f"/{id}")
    assert "The receiver answered 500 after" in page("POST", f"/{id}/test")
    assert "not the 1 delivery that is still to be sent" in page(path=f"/{id}/delete")
    receiver.status = 200
    bench.go(10)
    assert ": taken<" in page()
    seen = f"{page()} {page(path=f'/{id}')} {page(path=f'/{id}/delete')}"
    assert secret not in seen, "it was shown once"
    assert "secret-path" not in f"{seen} {made}", "the address is a secret, too"

    page("POST", f"/{id}/delete", 303)
    assert "No webhooks yet" in page()
    page(path=f"/{id}", status=404)
    with guarded.db.read() as session:
        written = [(entry.action, entry.object, entry.status) for entry in session.scalars(select(AuditEntry))]
        text = str(session.execute(select(AuditEntry.__table__)).all())
    assert written == [("webhooks.create", id, 201), ("webhooks.test", id, 200), ("webhooks.delete", id, 303)]
    assert secret not in text


def test_a_form_that_is_sent_twice_or_loaded_again_makes_one_webhook(guarded: Guarded, receiver: Receiver) -> None:
    typed = {"url": receiver.url, "events": ["ended", "failed"], "waits_longer_than_minutes": "60", "form": "json"}

    def send(**other: Any) -> int:
        return guarded.ask(FIRST, "POST", "/webhooks", data=typed | other).status_code

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(lambda _: send(), range(4))) == [201, 422, 422, 422]
    again = guarded.ask(FIRST, "POST", "/webhooks", data=typed | {"events": ["failed", "ended"]})
    assert (again.status_code, "is told the same there already" in again.text) == (422, True)
    assert "secret-path" not in re.sub(r'<input id="url".*?>', "", again.text)
    assert [send(events=["failed"]), send(project="faces"), send(form="slack")] == [201, 201, 201]
    assert len(guarded.get(FIRST, "/v1/webhooks")["webhooks"]) == 4


@pytest.mark.parametrize(
    ("wrong", "possible"),
    [
        ({"url": "ftp://x.org/<b>"}, "begins with http:// or https://"),
        ({"url": "https://ann:pw@x.org/"}, "without user, password or fragment"),
        ({"project": "Faces & more"}, "lower-case letters, digits and hyphens, 63 at most"),
        ({"events": []}, "one or more of ended, failed, waiting"),
        ({"waits_longer_than_minutes": "soon"}, "a valid number"),
        ({"waits_longer_than_minutes": "0"}, "greater than 0"),
        ({"form": "xml"}, "'json' or 'slack'"),
    ],
)
def test_what_the_page_refuses_it_says_beside_the_field_and_keeps_what_was_typed(
    guarded: Guarded, wrong: dict[str, Any], possible: str
) -> None:
    typed = {
        "url": "https://x.org/hook", "project": "faces", "events": ["failed"], "waits_longer_than_minutes": "7",
        "form": "slack",
    }  # fmt: skip
    answer = guarded.ask(FIRST, "POST", "/webhooks", data=typed | wrong)
    assert answer.status_code == 422
    [field] = wrong
    [said] = re.findall(rf'<p class="note bad" id="bad-{field}">(.*?)</p>', answer.text)
    assert possible in html.unescape(said)
    shown = html.unescape(answer.text)
    for name in "url", "project", "waits_longer_than_minutes":
        assert f'value="{(typed | wrong)[name]}"' in shown
    checked = re.findall(r'value="(\w+)" checked', shown)
    assert checked == [*(typed | wrong)["events"], *({typed["form"]} - wrong.keys() if field != "form" else ())]
    assert guarded.get(FIRST, "/v1/webhooks") == {"webhooks": []}


def test_the_page_shows_an_admin_of_a_project_what_the_api_does(guarded: Guarded, receiver: Receiver) -> None:
    ours, theirs = guarded.token(Scope.ADMIN, "ours"), guarded.token(Scope.ADMIN, "theirs")
    typed = {"url": receiver.url, "events": "ended", "waits_longer_than_minutes": "60", "form": "slack"}
    assert guarded.ask(ours, "POST", "/webhooks", data=typed | {"project": "theirs"}).status_code == 403
    made = guarded.ask(ours, "POST", "/webhooks", data=typed)
    id = made.headers["Location"].removeprefix("/webhooks/")
    [listed] = guarded.get(ours, "/v1/webhooks")["webhooks"]
    assert (listed["id"], listed["project"], listed["form"], listed["events"]) == (id, "ours", "slack", ["ended"])
    assert id not in guarded.ask(theirs, "GET", "/webhooks").text
    for method, path in ("GET", ""), ("POST", "/test"), ("GET", "/delete"), ("POST", "/delete"):
        assert guarded.ask(theirs, method, f"/webhooks/{id}{path}").status_code == 404
    elsewhere = {"Authorization": f"Bearer {ours}", "Origin": "https://elsewhere.org"}
    for path in "", f"/{id}/test", f"/{id}/delete":
        assert guarded.http.post(f"/webhooks{path}", data=typed, headers=elsewhere).status_code == 403
    assert len(guarded.get(ours, "/v1/webhooks")["webhooks"]) == 1
    assert receiver.posts == []
    for scope in Scope.READ, Scope.SUBMIT:
        assert 'href="/webhooks"' not in guarded.ask(guarded.token(scope), "GET", "/").text
