"""Money, as the API returns it."""

from service.schemas.base import View
from service.text import hours


class Cost(View):
    """At the prices of today: when an operator changes them, what is shown of the past changes, too."""

    amount: float
    currency: str
    unpriced_hours: float = 0.0
    """Process-hours that are not in the amount, because their pool is not known or has no price."""

    def __str__(self) -> str:
        """`12.30 USD`, or `12.30 USD and 4 h without a price`."""
        rest = f" and {hours(self.unpriced_hours)} h without a price" if self.unpriced_hours else ""
        return f"{self.amount:,.2f} {self.currency}{rest}"
