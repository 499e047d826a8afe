"""What the other schemas are built from."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

ProjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
PROJECT_NAMES = "lower-case letters, digits and hyphens, 63 at most"
"""What is possible, in words; names of experiments are such, too."""


class View(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)
