"""What a GPU can do at best, by its data sheet: dense products without sparsity, and bytes from its memory."""

from typing import NamedTuple


class Card(NamedTuple):
    """Of one GPU."""

    bf16: float
    """FLOP/s of matrix products in bf16."""
    float32: float
    """FLOP/s in float32, which is never computed in TF32 here."""
    memory: float
    """Bytes/s."""

    def peak(self, precision: str) -> float | None:
        """FLOP/s of a run's precision; None for float64, in which nobody trains for speed."""
        return {"bf16": self.bf16, "float32": self.float32}.get(precision)


# By a part of the name that the driver gives; the first that fits counts.
CARDS = {
    "H200 NVL": Card(835e12, 60e12, 4.8e12),
    "H200": Card(989e12, 67e12, 4.8e12),
    "H100 NVL": Card(835e12, 60e12, 3.9e12),
    "H100 PCIe": Card(756e12, 51e12, 2.0e12),
    "H100": Card(989e12, 67e12, 3.35e12),
    "A100-SXM4-80GB": Card(312e12, 19.5e12, 2.039e12),
    "A100 80GB PCIe": Card(312e12, 19.5e12, 1.935e12),
    "A100": Card(312e12, 19.5e12, 1.555e12),
    "L40S": Card(362e12, 91.6e12, 0.864e12),
    "L4": Card(121e12, 30.3e12, 0.3e12),
}


def card(name: str) -> Card | None:
    """None for a GPU that the table does not have, and for a part of one (MIG)."""
    if "MIG" in name:
        return None
    return next((found for part, found in CARDS.items() if part in name), None)
