"""Who may do what: tokens, scopes and projects, as a client meets them."""

import asyncio
import html
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import text, update
from starlette.types import Message

from service.api.auth import COOKIE, ONLY_LOOKS
from service.api.body import MAX_BYTES
from service.db import Database
from service.pages.shared import Shared
from service.settings import Settings
from service.states import Scope
from service.tables import Experiment, Token
from service.tokens.service import Keyring
from tests.unit.service.bench import Clock
from tests.unit.service.test_api import Scene, counting_statements

OPEN = {
    "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc",
    "/static-offline-docs", "/static/{name}", "/login", "/logout",
}  # fmt: skip
"""Everything that answers without a token. What is not here and not below demands the scope read."""

MORE_THAN_READ = {
    ("POST", "/v1/experiments"): Scope.SUBMIT,
    ("PATCH", "/v1/experiments/{experiment_id}"): Scope.SUBMIT,
    ("POST", "/v1/experiments/{experiment_id}/cancel"): Scope.SUBMIT,
    ("POST", "/v1/experiments/{experiment_id}/pause"): Scope.SUBMIT,
    ("POST", "/v1/experiments/{experiment_id}/resume"): Scope.SUBMIT,
    ("POST", "/v1/experiments/{experiment_id}/retry"): Scope.SUBMIT,
    ("POST", "/v1/runs/{run_id}/{action}"): Scope.SUBMIT,
    ("POST", "/v1/experiments/{experiment_id}/extend"): Scope.SUBMIT,
    ("GET", "/experiments/{experiment_id}/cancel"): Scope.SUBMIT,
    ("POST", "/experiments/{experiment_id}/cancel"): Scope.SUBMIT,
    ("POST", "/experiments/{experiment_id}/pause"): Scope.SUBMIT,
    ("POST", "/experiments/{experiment_id}/resume"): Scope.SUBMIT,
    ("POST", "/experiments/{experiment_id}/retry"): Scope.SUBMIT,
    ("GET", "/experiments/{experiment_id}/manage"): Scope.SUBMIT,
    ("POST", "/experiments/{experiment_id}/manage"): Scope.SUBMIT,
    ("POST", "/experiments/{experiment_id}/change"): Scope.SUBMIT,
    ("POST", "/runs/{run_id}/{action}"): Scope.SUBMIT,
    ("GET", "/v1/audit"): Scope.ADMIN,
    ("DELETE", "/v1/experiments/{experiment_id}"): Scope.SUBMIT,
    ("POST", "/v1/experiments/{experiment_id}/restore"): Scope.SUBMIT,
    ("GET", "/v1/deletion"): Scope.SUBMIT,
    ("GET", "/delete"): Scope.SUBMIT,
    ("POST", "/delete"): Scope.SUBMIT,
    ("GET", "/v1/store"): Scope.ADMIN,
    ("POST", "/v1/rebuild"): Scope.ADMIN,
    ("GET", "/v1/projects"): Scope.ADMIN,
    ("GET", "/audit"): Scope.ADMIN,
    ("GET", "/store"): Scope.ADMIN,
    ("GET", "/store/found"): Scope.ADMIN,
    ("PATCH", "/v1/projects/{name}"): Scope.ADMIN,
    ("GET", "/experiments/{experiment_id}/delete"): Scope.SUBMIT,
    ("POST", "/experiments/{experiment_id}/delete"): Scope.SUBMIT,
    ("POST", "/experiments/{experiment_id}/restore"): Scope.SUBMIT,
    ("GET", "/experiments/{experiment_id}/extend"): Scope.SUBMIT,
    ("POST", "/experiments/{experiment_id}/extend"): Scope.SUBMIT,
    ("GET", "/new"): Scope.SUBMIT,
    ("POST", "/new"): Scope.SUBMIT,
    ("POST", "/new/check"): Scope.SUBMIT,
    ("POST", "/new/file"): Scope.SUBMIT,
    ("GET", "/v1/tokens"): Scope.ADMIN,
    ("POST", "/v1/tokens"): Scope.ADMIN,
    ("DELETE", "/v1/tokens/{token_id}"): Scope.ADMIN,
    ("GET", "/v1/webhooks"): Scope.ADMIN,
    ("POST", "/v1/webhooks"): Scope.ADMIN,
    ("DELETE", "/v1/webhooks/{webhook_id}"): Scope.ADMIN,
    ("POST", "/v1/webhooks/{webhook_id}/test"): Scope.ADMIN,
    ("GET", "/v1/webhooks/{webhook_id}/deliveries"): Scope.ADMIN,
    ("GET", "/webhooks"): Scope.ADMIN,
    ("POST", "/webhooks"): Scope.ADMIN,
    ("GET", "/webhooks/{webhook_id}"): Scope.ADMIN,
    ("POST", "/webhooks/{webhook_id}/test"): Scope.ADMIN,
    ("GET", "/webhooks/{webhook_id}/delete"): Scope.ADMIN,
    ("POST", "/webhooks/{webhook_id}/delete"): Scope.ADMIN,
}

FIRST = "first-token"


class Guarded(Scene):
    """A service that wants a token, on a clock that is set."""

    def __init__(self, settings: Settings, db: Database) -> None:
        url = db.engine.url.render_as_string(hide_password=False)
        super().__init__(settings.model_copy(update={"token": SecretStr(FIRST), "database_url": url}))
        self.clock = Clock()
        self.app.state.keyring = Keyring(self.db, self.clock)
        self.routes = [
            (method, context.path or "")
            for context in iter_route_contexts(self.app.routes)
            for method in sorted(context.methods or {"GET"})
        ]

    def ask(self, secret: str, method: str, path: str, **options: Any) -> Any:
        # As a browser that is on a page of the service's own.
        headers = {"Authorization": f"Bearer {secret}", "Origin": "http://localhost"}
        return self.http.request(method, path, headers=headers, **options)

    def get(self, secret: str, path: str) -> Any:
        answer = self.ask(secret, "GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def token(self, scope: Scope, project: str | None = None, by: str = FIRST, **more: Any) -> str:
        wanted = {"name": f"{project} {scope}", "scope": scope, "project": project, **more}
        answer = self.ask(by, "POST", "/v1/tokens", json=wanted)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["secret"])

    def submit(self, secret: str, spec: dict[str, Any], **options: Any) -> Any:
        answer = self.ask(secret, "POST", "/v1/experiments", json=spec, **options)
        assert answer.status_code == 201, answer.text
        return answer.json()


@pytest.fixture
def guarded(settings: Settings, database: Database) -> Iterator[Guarded]:
    made = Guarded(settings, database)
    yield made
    made.db.engine.dispose()


def test_a_page_is_made_once_for_who_may_see_the_same_and_anew_after_any_change_through_any_replica(
    guarded: Guarded, settings: Settings, database: Database, spec: dict[str, Any]
) -> None:
    other = Guarded(settings, database)
    for replica in guarded, other:
        replica.app.state.polled = Shared(kept_for=10_000)
    id = guarded.submit(FIRST, spec)["id"]
    ann, ben = (guarded.token(Scope.READ, name=name) for name in ("ann", "ben"))
    of_a_project = guarded.token(Scope.READ, "default")

    def page(secret: str, replica: Guarded = guarded) -> str:
        browser = TestClient(replica.app, cookies={COOKIE: secret})
        return str(browser.get(f"/experiments/{id}").text)

    def rename(name: str) -> None:
        with guarded.db.write() as session:
            session.execute(update(Experiment).values(name=name))

    first = page(ann)
    rename("second")
    assert page(ben) == first.replace("token ann (read)", "token ben (read)") != first
    assert "second" in page(of_a_project), "who may see something else gets a page of their own"
    assert "second" in page(ann, other), "each replica makes its own"
    rename("third")
    other.ask(FIRST, "POST", f"/v1/experiments/{id}/pause")
    for replica in guarded, other:
        assert "third" in page(ben, replica)
    other.db.engine.dispose()


def filled(path: str, **known: str) -> str:
    return re.sub(r"{(\w+)}", lambda match: known.get(match[1], "nope"), path)


def kinds(statements: list[str]) -> list[str]:
    return [statement.split()[0] for statement in statements if not statement.startswith("BEGIN")]


def run_of(experiment: dict[str, Any]) -> str:
    return str(experiment["arms"][0]["trials"][0]["run_id"])


# ---------------------------------------------------------------- scopes


def test_every_route_demands_a_token_unless_it_is_known_to_be_open(guarded: Guarded) -> None:
    closed = [(method, path) for method, path in guarded.routes if path not in OPEN]
    assert {path for _, path in guarded.routes} >= OPEN | {"/", "/v1/whoami", "/runs/{run_id}/log"}
    assert set(closed) >= set(MORE_THAN_READ)
    for method, path in closed:
        for headers in {}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {FIRST}"}:
            answer = guarded.http.request(method, filled(path), headers=headers)
            assert answer.status_code == 401, (method, path)
            if path.startswith("/v1"):
                assert answer.json()["error"] == "unauthorized"
                assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("has", Scope)
def test_a_scope_opens_what_it_says_and_no_more(guarded: Guarded, has: Scope) -> None:
    secret = guarded.token(has)
    assert guarded.get(secret, "/v1/whoami") == {"name": f"None {has}", "scope": has, "project": None}
    for method, path in guarded.routes:
        if path in OPEN:
            continue
        asks = MORE_THAN_READ.get((method, path), Scope.READ)
        answer = guarded.ask(secret, method, filled(path))
        assert (answer.status_code != 403) == has.includes(asks), (method, path, answer.text)
        assert answer.status_code != 401
        if answer.status_code == 403:
            assert f"needs the scope {asks}" in answer.text
            assert f"has {has}" in answer.text
            assert not path.startswith("/v1") or answer.json()["error"] == "forbidden"


# ---------------------------------------------------------------- projects


def test_what_is_another_projects_is_not_there_by_any_address(guarded: Guarded, spec: dict[str, Any]) -> None:
    ours, theirs = guarded.token(Scope.ADMIN, "ours"), guarded.token(Scope.ADMIN, "theirs")
    mine = guarded.submit(ours, spec)
    other = guarded.submit(theirs, spec | {"seeds": [8, 9]})
    assert (mine["project"], other["project"]) == ("ours", "theirs")
    asked = 0
    for method, path in guarded.routes:
        if not (names := set(re.findall(r"{(\w+)}", path)) - {"name", "form", "token_id", "action", "webhook_id"}):
            continue
        # An id by another name would not be seen to (service.api.auth).
        assert names <= {"experiment_id", "run_id"}, path
        hidden = guarded.ask(ours, method, filled(path, experiment_id=other["id"], run_id=run_of(other)))
        absent = guarded.ask(ours, method, filled(path, experiment_id="e0", run_id="r0"))
        assert hidden.status_code == absent.status_code == 404, (method, path)
        told = hidden.text.replace(other["id"], "e0").replace(run_of(other), "r0")
        assert told == absent.text, "nobody can tell what is another's from what does not exist"
        asked += 1
        own = guarded.ask(ours, method, filled(path, experiment_id=mine["id"], run_id=run_of(mine)))
        assert not re.search("There is no (experiment|run) ", own.text), (method, path)
    assert asked >= 15
    assert guarded.get(theirs, f"/v1/experiments/{other['id']}")["counts"] == {"queued": 4}, "nobody has cancelled it"


def test_lists_hold_the_tokens_project_and_another_one_is_refused(guarded: Guarded, spec: dict[str, Any]) -> None:
    ours, theirs = guarded.token(Scope.ADMIN, "ours"), guarded.token(Scope.ADMIN, "theirs")
    mine = guarded.submit(ours, spec | {"name": "mine"})
    other = guarded.submit(theirs, spec | {"name": "other", "seeds": [8, 9]})
    for path, own, foreign in (
        ("/v1/experiments", mine["id"], other["id"]),
        ("/v1/runs", run_of(mine), run_of(other)),
        ("/v1/tokens", "ours admin", "theirs admin"),
        ("/", mine["id"], other["id"]),
    ):
        for address in path, f"{path}?project=ours":
            listed = guarded.ask(ours, "GET", address).text
            assert own in listed
            assert foreign not in listed
        assert foreign in guarded.ask(FIRST, "GET", path).text
        assert foreign not in guarded.ask(FIRST, "GET", f"{path}?project=ours").text
        assert guarded.ask(ours, "GET", f"{path}?project=theirs").status_code == 403
    assert guarded.get(ours, f"/v1/runs?experiment={other['id']}")["runs"] == []
    refused = guarded.ask(ours, "POST", "/v1/experiments?project=theirs", json=spec)
    assert (refused.status_code, refused.json()["error"]) == (403, "forbidden")
    assert "belongs to project 'ours'" in refused.json()["detail"]
    assert guarded.submit(FIRST, spec)["project"] == "default"


def test_what_pages_ask_for_again_is_shared_by_who_may_see_the_same_and_by_nobody_else(
    guarded: Guarded, spec: dict[str, Any]
) -> None:
    ours, theirs = guarded.token(Scope.ADMIN, "ours"), guarded.token(Scope.ADMIN, "theirs")
    reads, too = (guarded.token(Scope.READ, "ours", name=name) for name in ("reads", "reads too"))

    def poll(secret: str, path: str = "/") -> str:
        answer = guarded.http.get(path, headers={"Authorization": f"Bearer {secret}", "HX-Request": "true"})
        return str(answer.text) if answer.status_code == 200 else ""

    guarded.app.state.polled = Shared(kept_for=10_000)
    mine = guarded.submit(ours, spec | {"name": "mine"})["id"]
    assert mine in poll(ours)
    assert mine not in poll(theirs)
    assert poll(ours, f"/experiments/{mine}")
    assert not poll(theirs, f"/experiments/{mine}")
    # Who may do more is offered more.
    assert "Cancel" in poll(ours, f"/experiments/{mine}")
    assert "Cancel" not in poll(reads, f"/experiments/{mine}")
    poll(reads)
    with counting_statements(guarded.db.engine) as statements:
        assert poll(too) == poll(reads)
    assert not [each for each in statements if "FROM experiments" in each], "it was answered once"
    # What somebody changes is seen by the next who asks.
    other = guarded.submit(theirs, spec | {"name": "other", "seeds": [8, 9]})["id"]
    assert other in poll(theirs)
    assert other in poll(FIRST)


def test_a_teacher_is_a_run_of_the_tokens_project(guarded: Guarded, spec: dict[str, Any]) -> None:
    ours, theirs = guarded.token(Scope.SUBMIT, "ours"), guarded.token(Scope.SUBMIT, "theirs")
    run = run_of(guarded.submit(theirs, spec))
    guarded.finish()
    taught = {**spec, "base": spec["base"] | {"teacher": {"source": f"run:{run}"}}}
    problems = {
        who: guarded.ask(secret, "POST", "/v1/experiments?dry_run=true", json=taught).json()["problems"]
        for who, secret in (("ours", ours), ("theirs", theirs))
    }
    assert "is not a run of this service" in problems["ours"][0]["asked"]
    # Theirs is found, and lacks only what no trainer has written.
    assert "is not a run of this service" not in str(problems["theirs"])


def test_equal_runs_of_two_projects_are_trained_once_and_each_sees_its_own_use(
    guarded: Guarded, spec: dict[str, Any]
) -> None:
    ours, theirs = guarded.token(Scope.SUBMIT, "ours"), guarded.token(Scope.SUBMIT, "theirs")
    first = guarded.submit(theirs, spec | {"name": "first"})
    second = guarded.submit(ours, spec | {"name": "second"})
    guarded.finish()
    assert run_of(first) == run_of(second)
    for secret, own, hours in (theirs, first, 4.0), (ours, second, 0.0):
        run = guarded.get(secret, f"/v1/runs/{run_of(own)}")
        assert [use["experiment_id"] for use in run["used_by"]] == [own["id"]]
        assert own["name"] in guarded.ask(secret, "GET", f"/runs/{run_of(own)}").text
        assert guarded.get(secret, f"/v1/experiments/{own['id']}")["gpu_hours"] == hours
    assert first["id"] not in guarded.ask(ours, "GET", f"/runs/{run_of(second)}").text
    assert len(guarded.get(FIRST, f"/v1/runs/{run_of(first)}")["used_by"]) == 2


def test_an_idempotency_key_is_a_projects_own(guarded: Guarded, spec: dict[str, Any]) -> None:
    key = {"Authorization": f"Bearer {FIRST}", "Idempotency-Key": "k"}
    ids = [
        guarded.http.post(f"/v1/experiments?project={project}", json=spec, headers=key).json()["id"]
        for project in ("a", "b", "a")
    ]
    assert ids[0] == ids[2] != ids[1]
    other = guarded.http.post("/v1/experiments?project=b", json=spec | {"seeds": 1}, headers=key)
    assert (other.status_code, other.json()["error"]) == (409, "key_reused")


# ---------------------------------------------------------------- tokens


def test_a_secret_is_shown_once_and_kept_nowhere(guarded: Guarded, capfd: pytest.CaptureFixture[str]) -> None:
    secret = guarded.token(Scope.READ, "faces", expires_in_days=90)
    assert re.fullmatch(r"mcf_t[0-9a-f]{10}_[A-Za-z0-9_-]{43}", secret)
    guarded.get(secret, "/v1/experiments")
    [listed] = guarded.get(FIRST, "/v1/tokens")["tokens"]
    assert set(listed) == {
        "id", "name", "scope", "project", "created_at", "created_by", "expires_at", "revoked_at", "last_used_at",
    }  # fmt: skip
    with guarded.db.read() as session:
        rows = session.execute(text("SELECT * FROM tokens")).all()
    kept = f"{listed} {rows} {capfd.readouterr()}"
    assert listed["id"] in kept
    assert secret[len("mcf_t0123456789_") :] not in kept


def test_revoked_and_expired_tokens_are_refused_and_say_so(guarded: Guarded) -> None:
    brief, gone, good = (guarded.token(Scope.READ, expires_in_days=days) for days in (1, 30, 30))
    token_id = gone.split("_")[1]
    revoked = [guarded.ask(FIRST, "DELETE", f"/v1/tokens/{token_id}").json() for _ in range(2)]
    assert revoked[0] == revoked[1], "doing it again changes nothing"
    guarded.clock.now += timedelta(days=2)
    for secret, says in (brief, "expired at"), (gone, "was revoked at"), (f"{good[:-1]}!", "not known to the service"):
        answer = guarded.ask(secret, "GET", "/v1/experiments")
        assert (answer.status_code, answer.json()["error"]) == (401, "unauthorized")
        assert says in answer.json()["detail"]
    assert guarded.ask(good, "GET", "/v1/experiments").status_code == 200
    forged = good[:-2] + ("AA" if good[-2:] != "AA" else "BB")
    assert guarded.ask(forged, "GET", "/v1/experiments").status_code == 401, "the id alone opens nothing"
    assert guarded.ask(FIRST, "DELETE", "/v1/tokens/t0").status_code == 404


def test_a_token_costs_one_statement_and_a_revocation_elsewhere_counts_within_seconds(guarded: Guarded) -> None:
    secret = guarded.token(Scope.READ)
    other = Keyring(guarded.db, guarded.clock)  # another replica, or this one before it heard of anything
    with counting_statements(guarded.db.engine) as statements:
        token = other.find(secret)
    assert kinds(statements) == ["SELECT", "UPDATE"], "found, and its use noted"
    with counting_statements(guarded.db.engine) as statements:
        assert other.find(secret) is token
    assert statements == []
    assert token
    with guarded.db.write() as session:
        session.execute(update(Token).values(revoked_at=guarded.clock()))
    guarded.clock.now += timedelta(seconds=6)
    with counting_statements(guarded.db.engine) as statements:
        found = other.find(secret)
    assert found
    assert "revoked" in other.ended(found)
    assert kinds(statements) == ["SELECT"], "what is no longer good is not noted as used"


def test_its_last_use_is_known_to_the_minute(guarded: Guarded) -> None:
    secret, began = guarded.token(Scope.READ), guarded.clock()
    noted = []
    for _ in range(13):
        guarded.get(secret, "/v1/whoami")
        noted.append(guarded.get(FIRST, "/v1/tokens")["tokens"][0]["last_used_at"])
        guarded.clock.now += timedelta(seconds=10)
    assert len(set(noted)) == 3, "two minutes: written at their beginnings and ends"
    assert noted[0][:19] == f"{began:%Y-%m-%dT%H:%M:%S}"


def test_an_admin_of_a_project_makes_and_revokes_tokens_of_that_project_only(guarded: Guarded) -> None:
    admin, stranger = guarded.token(Scope.ADMIN, "faces"), guarded.token(Scope.READ, "other")
    made = guarded.token(Scope.SUBMIT, by=admin)
    assert guarded.get(made, "/v1/whoami")["project"] == "faces", "not every project, although none was named"
    wanted = {"name": "x", "scope": "read", "project": "other"}
    assert guarded.ask(admin, "POST", "/v1/tokens", json=wanted).status_code == 403
    assert guarded.ask(admin, "DELETE", f"/v1/tokens/{stranger.split('_')[1]}").status_code == 404
    assert guarded.get(stranger, "/v1/whoami")["project"] == "other"
    assert guarded.ask(admin, "DELETE", f"/v1/tokens/{made.split('_')[1]}").status_code == 200
    assert guarded.ask(made, "GET", "/v1/whoami").status_code == 401


def test_a_wrong_wish_for_a_token_is_refused_with_every_problem(guarded: Guarded) -> None:
    wanted = {"name": "", "scope": "root", "project": "No Such", "expires_in_days": 0, "secret": "mine"}
    answer = guarded.ask(FIRST, "POST", "/v1/tokens", json=wanted)
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid_request")
    assert {problem["field"] for problem in answer.json()["problems"]} == set(wanted)


# ---------------------------------------------------------------- bodies of strangers


def test_of_an_endless_body_no_address_reads_more_than_a_mebibyte(guarded: Guarded) -> None:
    chunk, read = b" " * 2**16, 0

    async def receive() -> Message:
        nonlocal read
        read += len(chunk)
        assert read <= 2 * MAX_BYTES, "the body is read without a bound"
        return {"type": "http.request", "body": chunk, "more_body": True}

    for method, path in guarded.routes:
        if method in ONLY_LOOKS:
            continue
        read, sent = 0, list[Message]()

        async def send(message: Message, sent: list[Message] = sent) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}
        asyncio.run(guarded.app(scope, receive, send))
        assert read <= MAX_BYTES + len(chunk), (method, path)
        assert sent[0]["status"] in (401, 405, 413) or (path, read) == ("/logout", 0), (method, path)


def test_a_body_that_is_too_large_is_refused_in_words(guarded: Guarded) -> None:
    answer = guarded.http.post("/v1/experiments/e0123456789/extend", content=b" " * (MAX_BYTES + 1))
    assert (answer.status_code, answer.json()["error"]) == (413, "body_too_large")
    assert f"larger than {MAX_BYTES} bytes" in answer.json()["detail"]


# ---------------------------------------------------------------- the page, and no token at all


def test_the_page_takes_any_token_by_its_form_and_shows_what_the_token_may_see(
    guarded: Guarded, spec: dict[str, Any]
) -> None:
    secret = guarded.token(Scope.READ, "faces")
    guarded.submit(FIRST, spec | {"name": "seen"}, params={"project": "faces"})
    guarded.submit(FIRST, spec | {"name": "unseen"})
    wrong = guarded.http.post("/login", data={"token": "mcf_nonsense"})
    assert wrong.status_code == 401
    assert "not known to the service" in wrong.text
    behind_tls = {"X-Forwarded-Proto": "https"}
    into = guarded.http.post("/login", data={"token": secret}, headers=behind_tls, follow_redirects=False)
    assert into.status_code == 303
    assert {"HttpOnly", "Secure", "SameSite=strict"} <= set(into.headers["set-cookie"].split("; "))
    guarded.http.cookies = {COOKIE: secret}
    page = guarded.http.get("/").text
    assert "seen" in page
    assert "unseen" not in page
    assert guarded.http.get("/?project=other").status_code == 403
    guarded.http.cookies = {}
    for asked in "/?state=queued&search=a%26b", "/compare?one=e1&other=e2", "/queue":
        form = html.unescape(guarded.http.get(asked).text)
        assert f'name="next" value="{asked}"' in form, "a link that was shared leads to what it shows"
    guarded.ask(FIRST, "DELETE", f"/v1/tokens/{secret.split('_')[1]}")
    guarded.http.cookies = {COOKIE: secret}
    assert "was revoked" in guarded.http.get("/").text


def test_without_a_first_token_everybody_on_this_machine_is_admin(settings: Settings, spec: dict[str, Any]) -> None:
    http = Scene(settings).http
    assert http.get("/v1/whoami").json() == {"name": "local", "scope": "admin", "project": None}
    assert http.get("/v1/whoami", headers={"Authorization": "Bearer of-another-service"}).status_code == 200
    assert http.post("/v1/experiments", json=spec).json()["project"] == "default"
    assert http.post("/v1/tokens", json={"name": "for later", "scope": "read"}).status_code == 201


def test_without_a_token_no_other_site_s_page_can_act_through_a_browser(
    settings: Settings, spec: dict[str, Any]
) -> None:
    http = Scene(settings).http
    id = http.post("/v1/experiments", json=spec).json()["id"]
    # What a form of any page can send; it needs no body and asks for no leave.
    for path in f"/v1/experiments/{id}/cancel", f"/experiments/{id}/cancel":
        refused = http.post(path, headers={"Origin": "https://elsewhere.org"})
        assert refused.status_code == 403
        assert "https://elsewhere.org" in refused.text
    assert http.get(f"/v1/experiments/{id}").json()["state"] == "queued"
    assert http.post(f"/v1/experiments/{id}/cancel", headers={"Origin": "http://localhost"}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example:8000", "localhost.evil.example", "10.0.0.7", "", "[::2]:80"])
def test_without_a_token_no_other_name_than_loopback_is_answered(settings: Settings, host: str) -> None:
    http = Scene(settings).http
    for path in "/v1/experiments", "/v1/whoami", "/":
        answer = http.get(path, headers={"Host": host})
        assert answer.status_code == 403, path
        assert "MCF_TOKEN" in answer.text
    for name in "127.0.0.1:8000", "localhost", "[::1]:8000", "LOCALHOST:1":
        assert http.get("/v1/experiments", headers={"Host": name}).status_code == 200


def test_with_a_token_the_name_does_not_matter(guarded: Guarded) -> None:
    headers = {"Host": "mcf.example.org", "Authorization": f"Bearer {FIRST}"}
    assert guarded.http.get("/v1/experiments", headers=headers).status_code == 200


# ---------------------------------------------------------------- the audit


def test_the_audit_tells_who_asked_for_what_and_what_came_of_it(guarded: Guarded, spec: dict[str, Any]) -> None:
    ours, theirs = guarded.token(Scope.SUBMIT, "ours"), guarded.token(Scope.ADMIN, "theirs")
    mine = guarded.submit(ours, spec)
    assert mine["created_by"] == "ours submit"
    guarded.ask(ours, "POST", "/v1/experiments?dry_run=true", json=spec)  # changes nothing
    [arm, *_] = mine["arms"]
    guarded.ask(ours, "POST", f"/v1/experiments/{mine['id']}/cancel", json={"arms": [arm["name"]]})
    guarded.ask(ours, "POST", f"/runs/{run_of(mine)}/retry?dry_run=true")  # there the word means nothing
    guarded.ask(ours, "PATCH", f"/v1/experiments/{mine['id']}", json={"priority": 7, "gpu_hours": None})
    refused = guarded.ask(theirs, "POST", f"/v1/experiments/{mine['id']}/pause")
    found = guarded.get(FIRST, "/v1/audit")["entries"]
    token_ids = [ours.split("_")[1], theirs.split("_")[1]]
    assert [tuple(entry[name] for name in ("name", "action", "object", "asked", "status")) for entry in found] == [
        ("theirs admin", "experiments.pause", mine["id"], "", refused.status_code),
        ("ours submit", "experiments.change", mine["id"], '{"priority":7,"gpu_hours":null}', 200),
        ("ours submit", "runs.retry", run_of(mine), "dry_run=true", 303),
        ("ours submit", "experiments.cancel", mine["id"], f'{{"arms":["{arm["name"]}"]}}', 200),
        ("ours submit", "experiments.create", mine["id"], "", 201),
        ("MCF_TOKEN", "tokens.create", token_ids[1], "", 201),
        ("MCF_TOKEN", "tokens.create", token_ids[0], "", 201),
    ]
    assert {entry["token_id"] for entry in found} == {*token_ids, ""}
    assert refused.status_code == 404
    assert [entry["action"] for entry in guarded.get(theirs, "/v1/audit")["entries"]] == ["experiments.pause"]
    headers = {"Authorization": f"Bearer {FIRST}", "Accept": "application/x-ndjson"}
    lines = guarded.http.get(f"/v1/audit?after={found[2]['id']}", headers=headers).text.splitlines()
    assert [json.loads(line) for line in lines] == [found[1], found[0]]


def test_what_cannot_be_written_down_is_not_done(guarded: Guarded, spec: dict[str, Any]) -> None:
    mine = guarded.submit(FIRST, spec)
    with guarded.db.write() as session:
        session.execute(text("ALTER TABLE audit RENAME TO gone"))
    assert guarded.ask(FIRST, "POST", f"/v1/experiments/{mine['id']}/cancel").status_code == 500
    assert guarded.get(FIRST, f"/v1/experiments/{mine['id']}")["state"] == "queued"
    with guarded.db.write() as session:
        session.execute(text("ALTER TABLE gone RENAME TO audit"))
