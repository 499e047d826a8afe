"""What a name means, as the API returns it."""

from enum import StrEnum

from service.schemas.base import View


class Kind(StrEnum):
    EXPERIMENT = "experiment"
    RUN = "run"


class Found(View):
    kind: Kind
    id: str
    name: str | None
    """Of an experiment; null for a run, which has none."""
