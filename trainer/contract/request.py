"""What `mcf evaluate` asks trainer.evaluation.measure to do; what one submits is experiment.py. Pydantic only."""

import hashlib
import json
from typing import Any, get_args

from pydantic import Field

from trainer.contract.frozen import Asked
from trainer.contract.run import Data
from trainer.contract.stage import Alignment, Parsing, Stage

KINDS: dict[str, type[Stage]] = {"alignment": Alignment, "parsing": Parsing}
STAGE_OF = {
    benchmark: name for name, kind in KINDS.items() for benchmark in get_args(kind.model_fields["benchmark"].annotation)
}
"""Benchmark -> the stage it is one of."""


class Request(Asked):
    """A stage of evaluation on an encoder that is there."""

    model: str
    """Where it is: trainer/weights/encoders.py."""
    stage: str
    asked: dict[str, Any]
    """The fields of the stage."""
    data: Data | None = None
    """The images that faces68 annotates."""
    held_out: int = Field(2, ge=2)
    """Of these, the test split."""
    seed: int = Field(0, ge=0)
    heads: int | None = Field(None, ge=1)
    """Of the encoder, where its file does not say."""

    @property
    def digest(self) -> str:
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
