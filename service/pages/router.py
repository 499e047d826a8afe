"""The pages: experiments, an experiment, a run, the queue. Rendered here, kept fresh by htmx asking for the same again.

Reads through the same functions as the API, and shows a token what the API would. Included without dependencies: it
asks for the token itself, in a form, and its style sheet and script are open to all.
"""

from pathlib import Path
from urllib.parse import parse_qsl

import anyio.to_thread
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import FileResponse, RedirectResponse

from service.api.auth import COOKIE, Require, principal_of, refuse_other_sites
from service.errors import NotFound, Unauthorized
from service.pages import actions, admin, compare, experiment, listing, manage, queue, retention, run, submit, webhooks
from service.pages.render import MAX_KEPT_BYTES, PageRoute, sent_again_to, token_form
from service.states import Scope

MAX_LOGIN_BYTES = MAX_KEPT_BYTES + 4096
"""Anybody may send this form, so less of it is read than of the others (forms.py)."""
STATIC = {path.name: path for path in (Path(__file__).parent / "static").iterdir()}

open_to_all = APIRouter(include_in_schema=False)
leaving = APIRouter(route_class=PageRoute, include_in_schema=False)


@open_to_all.get("/login")
def ask_for_token() -> Response:
    """The form by itself, for who wants to go on with another token."""
    return token_form("/")


@open_to_all.post("/login")
async def login(request: Request) -> Response:
    """The token from the form into a cookie that no script can read and no other site can use.

    What was written before the token was asked for comes along: the browser sends it once more, to its own address.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_LOGIN_BYTES:
            return token_form("/", "That is longer than any token.", status=413)
    form = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)
    asked = dict(form)
    token, target = asked.get("token", ""), asked.get("next", "/")
    written = [(name, value) for name, value in form if name not in ("token", "next")]
    try:
        await anyio.to_thread.run_sync(principal_of, request.app.state, token)
    except Unauthorized as error:
        return token_form(target, error.detail, written, 401)
    # Only to a page of ours: //other.site would be another one.
    safe = target if target.startswith("/") and not target.startswith(("//", "/\\")) else "/"
    again = sent_again_to(safe) if written else ""
    # 307 is the redirect after which a browser sends what it has sent.
    answer = RedirectResponse(again, 307) if again else RedirectResponse(safe, 303)
    # TLS mostly ends at an ingress, which says so in a header; who makes that up keeps only themselves out.
    secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
    answer.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=secure)
    return answer


@leaving.post("/logout", dependencies=[Depends(refuse_other_sites)])
def logout() -> Response:
    """For who has a token that is no longer good, too: so without asking for one."""
    answer = RedirectResponse("/login", status_code=303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


@open_to_all.get("/static/{name}")
def static(name: str) -> Response:
    if name not in STATIC:
        raise NotFound(f"There is no file {name!r}.")
    return FileResponse(STATIC[name], headers={"Cache-Control": "max-age=3600", "X-Content-Type-Options": "nosniff"})


router = APIRouter()
protected = [Depends(Require(Scope.READ))]
for routes in (
    listing.router,
    admin.router,
    webhooks.router,
    compare.router,
    submit.router,
    experiment.router,
    actions.router,
    manage.router,
    retention.router,
    run.router,
    queue.router,
):
    router.include_router(routes, dependencies=protected)
router.include_router(open_to_all)
router.include_router(leaving)
