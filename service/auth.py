"""One bearer token protects everything but the probes. Browsers carry it in a cookie that no script can read."""

import hmac

from fastapi import Request
from pydantic import SecretStr

from service.errors import Unauthorized

COOKIE = "mcf_token"


def require_token(request: Request) -> None:
    """Dependency of every protected route. Raises Unauthorized."""
    token: SecretStr | None = request.app.state.settings.token
    if token is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        given = request.cookies.get(COOKIE, "")
    if not hmac.compare_digest(given.encode(), token.get_secret_value().encode()):
        raise Unauthorized(
            "This service wants its token: send the header `Authorization: Bearer ...`, "
            "or open / in a browser and enter it there."
        )
