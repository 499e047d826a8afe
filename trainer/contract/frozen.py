"""The bases of all models of the contract. Pydantic only."""

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

MAX_INTEGER, MAX_NUMBER = 2**31 - 1, 3e38
"""The largest that a database's integer column and a 32-bit float hold."""


class Frozen(BaseModel):
    """Base of all contract models: unknown fields refused, values immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Asked(Frozen):
    """Base of what people ask for: every number fits where it is kept and where it is computed with."""

    @field_validator("*")
    @classmethod
    def _fits(cls, value: Any) -> Any:
        for number in value if isinstance(value, list | tuple) else [value]:
            largest = MAX_INTEGER if isinstance(number, int) else MAX_NUMBER
            if isinstance(number, int | float) and abs(number) > largest:
                raise ValueError(f"a number from {-largest} to {largest}")
        return value
