"""What the shell offers at Tab, asked of the service. Where none answers at once, it offers nothing and is silent."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice

import typer
from pydantic import ValidationError

from service.client import Client, McfError

# Somebody has pressed a key, and waits.
SECONDS = 1.0
# Newest experiments whose names are offered, and ids that are.
NAMES, IDS = 200, 50
Offer = tuple[str, str]
"""What may stand there, and a few words on it."""


def experiments(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Names of experiments; ids, where what is typed may be one."""
    return _offers(_experiments(ctx, incomplete))


def runs(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Ids of runs."""
    return _offers(_runs(ctx, incomplete))


def arms(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Arms of the experiment that is named before."""
    return _offers(_arms(ctx, incomplete))


def things(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Both; runs only where what is typed may be the id of one: there are many."""
    found = experiments(ctx, incomplete)
    return found + runs(ctx, incomplete) if incomplete and _may_be_id("r", incomplete) else found


def _offers(found: Iterable[Offer]) -> list[Offer]:
    offers = list[Offer]()
    # A shell shows whatever is printed here in the middle of the line that is being typed.
    with suppress(McfError, ValidationError):
        offers.extend(found)
    return offers


def _experiments(ctx: typer.Context, incomplete: str) -> Iterator[Offer]:
    client = _client(ctx)
    newest = list(islice(client.experiments(), NAMES))
    count = Counter(item.name for item in newest)
    for item in newest:
        if item.name.startswith(incomplete) and (number := count.pop(item.name, 0)):
            yield item.name, f"{item.id}, {item.state.value}" if number == 1 else f"{number} of that name"
    if incomplete and _may_be_id("e", incomplete):
        for item in islice(client.experiments(prefix=incomplete), IDS):
            yield item.id, f"{item.name}, {item.state.value}"


def _runs(ctx: typer.Context, incomplete: str) -> Iterator[Offer]:
    if _may_be_id("r", incomplete):
        for item in islice(_client(ctx).runs(prefix=incomplete), IDS):
            yield item.id, f"{item.state.value}, step {item.step} of {item.total_steps}"


def _arms(ctx: typer.Context, incomplete: str) -> Iterator[Offer]:
    if name := ctx.params.get("name"):
        for arm in _client(ctx).experiment(name).detail.arms:
            if arm.name.startswith(incomplete):
                yield arm.name, "baseline" if arm.is_baseline else f"{len(arm.trials)} runs"


def _may_be_id(letter: str, text: str) -> bool:
    return re.fullmatch(f"({letter}[0-9a-f]*)?", text) is not None


def _client(ctx: typer.Context) -> Client:
    # The command itself is not run, so what it would have made of its options is not there.
    options = ctx.find_root().params
    return Client(options.get("url"), options.get("token"), timeout_seconds=SECONDS, warn=lambda told: None)
