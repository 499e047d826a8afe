"""What process-hours cost, at the prices that the operator gives to node pools."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from k8s.pools import read_pools
from service.schemas.costs import Cost
from service.settings import Settings


@dataclass(frozen=True)
class Prices:
    per_hour: Mapping[str, float]
    """Pool -> price of an hour of one process, which has a GPU to itself where there are any."""
    currency: str

    def of(self, process_seconds: float, pool_seconds: Mapping[str, float]) -> Cost | None:
        """What so many process-seconds cost; `pool_seconds`: of them, those whose pool is known. None where no pool
        has a price."""
        if not self.per_hour:
            return None
        priced = {pool: seconds for pool, seconds in pool_seconds.items() if pool in self.per_hour}
        amount = sum(seconds / 3600 * self.per_hour[pool] for pool, seconds in priced.items())
        # Sums of the same numbers in another order: less than a second is none.
        left = process_seconds - sum(priced.values())
        return Cost(amount=amount, currency=self.currency, unpriced_hours=left / 3600 if left >= 1 else 0.0)

    def of_hours(self, hours: float, pool: str) -> Cost | None:
        """What so many process-hours in this pool would cost; None where it has no price."""
        return self.of(hours * 3600, {pool: hours * 3600}) if pool in self.per_hour else None


FREE = Prices({}, "")
"""Where nothing has a price."""


def prices_of(settings: Settings) -> Prices:
    """Those of the node pools, as they were at the first question. Raises PoolsError."""
    return _prices(settings.pools if settings.scheduler != "local" else None, settings.currency)


@cache
def _prices(pools: Path | None, currency: str) -> Prices:
    found = read_pools(pools) if pools else {}
    per_hour = {name: pool.price_per_gpu_hour for name, pool in found.items() if pool.price_per_gpu_hour is not None}
    return Prices(per_hour, currency)
