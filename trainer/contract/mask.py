"""Which patches of an image a run hides: the fields of `mask` and of `contrastive.target_mask`. Pydantic only.

How many it hides is kept in `mask_ratio` and `contrastive.target_mask_ratio` alone, wherever it was asked for.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator

from trainer.contract.code import Code
from trainer.contract.frozen import MAX_NUMBER, Asked
from trainer.contract.shorthand import shorthand

Part = Literal["eyes", "brows", "nose", "mouth", "contour"]
PARTS: tuple[Part, ...] = get_args(Part)
# Fields that mean something with one kind, or two, alone.
OF_KINDS = {
    "landmarks": ("parts", "code"), "sha256": ("parts", "code"), "first": ("parts",), "keep": ("parts",),
    "code": ("code",),
}  # fmt: skip


class Mask(Asked):
    """Which patches are hidden (docs/masks.md). `mask: block` stands for `mask: {kind: block}`."""

    kind: Literal["random", "block", "grid", "parts", "code"] = "random"
    """`random`: every patch is as likely (published). `block`: rectangles. `grid`: an even pattern. `parts`: parts of
    the face come first, by landmarks. `code`: user code says it."""
    ratio: float | None = Field(None, strict=True)
    """Another way to write `mask_ratio`, or in `contrastive.target_mask` its `target_mask_ratio`, where it is kept."""
    landmarks: str | None = None
    """Of `parts`, and of `code` if it goes by them: a file as for `evaluation.landmarks`, a path or s3:// address. With
    `parts`, a face without landmarks gets a `random` mask."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Digest of the landmark file. Filled in on submission; if you give it, it is checked."""
    first: tuple[Part, ...] = ()
    """Of `parts`: which are hidden first: `eyes`, `brows`, `nose`, `mouth`, `contour` (jaw and chin)."""
    keep: bool = False
    """Of `parts`: they stay visible first, instead of being hidden first."""
    code: Annotated[Code | None, shorthand(field="uri")] = None
    """Of `code`: a Python file whose `mask(noise, side, num_visible, landmarks)` says which patches stay visible."""

    @field_validator("first")
    @classmethod
    def _in_one_order(cls, first: tuple[Part, ...]) -> tuple[Part, ...]:
        return tuple(part for part in PARTS if part in first)


def with_ratios_in_place(asked: Any) -> Any:
    """A run as it was asked for, with the ratios of its masks where they are kept, and equal masks asked for once.

    A ratio that is asked for twice stays where it is; `misfits` says so.
    """
    if not isinstance(asked, Mapping):
        return asked
    asked = _moved(dict(asked), "mask", "mask_ratio")
    if not isinstance(contrastive := _plain(asked.get("contrastive")), Mapping):
        return asked
    contrastive = _moved(dict(contrastive), "target_mask", "target_mask_ratio")
    theirs = contrastive.get("target_mask")
    # `{ratio: 0.5}` alone says nothing of a kind.
    if theirs == {} or (theirs is not None and (mask := _read(theirs)) and mask == _read(asked.get("mask", {}))):
        del contrastive["target_mask"]
    return {**asked, "contrastive": contrastive}


def mask_misfits(mask: Mask, holder: str, held: float | None) -> Iterator[tuple[str, str, str]]:
    """What does not fit together in one mask, as (field, asked, possible); `holder`: the field of its ratio."""
    if mask.ratio is not None:
        yield "ratio", f"{mask.ratio} beside {holder} = {held}", "one of the two"
    for name, kinds in OF_KINDS.items():
        if getattr(mask, name) and mask.kind not in kinds:
            yield name, f"{name} for a mask of kind {mask.kind}", f"{name} with kind {' or '.join(kinds)} only"
    if mask.kind == "parts" and not mask.landmarks:
        yield "landmarks", "nothing", "a landmark file for a mask of kind parts, by its path or s3:// address"
    if mask.kind == "parts" and not mask.first:
        yield "first", "no parts", f"one or more of {', '.join(PARTS)}, for a mask of kind parts"
    if mask.kind == "code" and not mask.code:
        yield "code", "nothing", "a Python file for a mask of kind code, by its path or s3:// address"
    if mask.sha256 and not mask.landmarks:
        yield "sha256", "a digest without landmarks", "a digest with a landmark file only"


def _moved(part: dict[str, Any], name: str, holder: str) -> dict[str, Any]:
    """`part` with the ratio of its mask `name` in its field `holder`."""
    mask = _plain(part.get(name))
    if not isinstance(mask, Mapping) or mask.get("ratio") is None:
        return part
    ratio = mask["ratio"]
    if type(ratio) not in (int, float) or not -MAX_NUMBER < ratio < MAX_NUMBER:
        return part  # its own check has the words for it
    if part.get(holder) not in (None, ratio):
        return part
    return {**part, name: {key: value for key, value in mask.items() if key != "ratio"}, holder: ratio}


def _plain(part: Any) -> Any:
    return part.model_dump(exclude_unset=True) if isinstance(part, BaseModel) else part


def _read(asked: Any) -> Mask | None:
    """None for what is no mask."""
    try:
        return Mask.model_validate({"kind": asked} if isinstance(asked, str) else asked)
    except ValidationError:
        return None
