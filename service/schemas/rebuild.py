"""What came of writing a database anew, as the API returns it."""

from service.schemas.base import View


class NotRebuilt(View):
    name: str
    """Of the object in the store."""
    why: str


class Rebuilt(View):
    experiments: int
    runs: int
    attempts: int
    skipped: list[NotRebuilt]
    """What could not be read."""
