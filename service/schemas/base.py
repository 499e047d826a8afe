"""What the other schemas are built from."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

from trainer.contract.experiment import NAME

ProjectName = Annotated[str, StringConstraints(pattern=NAME)]
PROJECT_NAMES = "lower-case letters, digits and hyphens, 63 at most"
"""What is possible, in words; names of experiments are such, too."""


class View(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)
