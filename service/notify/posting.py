"""One POST to a receiver: signed, ends in time, follows no redirect, reads little of the answer, logs no address."""

import hashlib
import hmac
import threading
import time
from dataclasses import dataclass

import httpx2

from service.version import VERSION

TIMEOUT_SECONDS = 5.0
"""For a connection, and for each part of an answer ..."""
TOTAL_SECONDS = 10.0
"""... and for all of it: who answers a byte at a time is as slow as who does not answer."""
MAX_READ, MAX_SAID = 4096, 200


@dataclass(frozen=True)
class Answer:
    status: int | None
    """None = there was none."""
    error: str
    """Empty = it was taken."""
    said: str
    seconds: float

    @property
    def is_ok(self) -> bool:
        return not self.error


def signature(secret: str, at: int, body: bytes) -> str:
    """Of the header Mcf-Signature. The time is signed, so that nobody can send again later what was sent once."""
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def post(url: str, secret: str, delivery_id: str, event: str, body: str, at: int) -> Answer:
    """Raises nothing that a receiver can bring about: what went wrong is in the answer."""
    content = body.encode()
    headers = {
        "Content-Type": "application/json", "User-Agent": f"mcf/{VERSION}", "Mcf-Event": event,
        "Mcf-Delivery": delivery_id, "Mcf-Signature": signature(secret, at, content),
    }  # fmt: skip
    began = time.monotonic()
    status: int | None = None
    said = error = ""
    # Receivers may be outside of the cluster: the environment's proxies are for them.
    http = httpx2.Client(timeout=TIMEOUT_SECONDS, follow_redirects=False)
    ending = threading.Timer(TOTAL_SECONDS, http.close)
    ending.daemon = True
    ending.start()
    try:
        with http.stream("POST", url, content=content, headers=headers) as answer:
            status = answer.status_code
            said = _beginning(answer, began)
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError) as failure:
        error = _words(failure, time.monotonic() - began)
    finally:
        ending.cancel()
        http.close()
    if status is not None:
        # An answer that breaks off after its status is one.
        error = "" if 200 <= status < 300 else f"the receiver answered {status}"
    return Answer(status, error, said, time.monotonic() - began)


def _beginning(answer: httpx2.Response, began: float) -> str:
    found = b""
    for part in answer.iter_raw():
        found += part
        if len(found) >= MAX_READ or time.monotonic() - began > TOTAL_SECONDS:
            break
    text = found[:MAX_READ].decode(errors="replace")
    return "".join(letter for letter in text if letter.isprintable() or letter == "\n").strip()[:MAX_SAID]


def _words(failure: Exception, seconds: float) -> str:
    if seconds >= TOTAL_SECONDS:
        return f"no whole answer within {TOTAL_SECONDS:g} s"
    if isinstance(failure, httpx2.TimeoutException):
        return f"no answer within {TIMEOUT_SECONDS:g} s"
    # Of an address that cannot be used the message may hold parts.
    if isinstance(failure, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
        return "the address cannot be used"
    return f"no connection, or it broke ({str(failure)[:MAX_SAID] or type(failure).__name__})"
