"""The base of all models of the contract. Pydantic only."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of all contract models: unknown fields refused, values immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
