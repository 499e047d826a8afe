"""What the other schemas are built from."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

ProjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
"""As names of experiments: lower-case letters, digits and hyphens."""


class View(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)
