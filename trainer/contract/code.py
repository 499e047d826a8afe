"""User code: a Python file that a run names, with a function that mcf calls. Pydantic only; nothing is executed."""

from pydantic import Field

from trainer.contract.frozen import Asked


class Code(Asked):
    """A Python file (docs/user-code.md). Its path alone stands for `{uri: PATH}`."""

    uri: str = Field(min_length=1)
    """The file, by path or s3:// address."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Digest of the file. Filled in on submission; if you give it, it is checked."""
