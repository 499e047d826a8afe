"""The trainer's picture panel with a column more: where the reconstruction is wrong.

Derived here and not drawn by the trainer, so that runs of any age have it.
"""

import io

from PIL import Image, ImageChops, ImageOps

COLUMNS, GAP = 3, 2
"""Of trainer/tracking/pictures.py: image, masked image, reconstruction, and the pixels between them."""
FULL = 0.5
"""Error that is drawn brightest, of the range of a colour: the same in every picture, so that arms can be compared."""


def with_errors(png: bytes) -> bytes:
    """PNG of four columns; a picture that is no panel stays as it is."""
    sheet = Image.open(io.BytesIO(png)).convert("RGB")
    side, rest = divmod(sheet.width - (COLUMNS - 1) * GAP, COLUMNS)
    if rest or (sheet.height + GAP) % (side + GAP):
        return png
    image = sheet.crop((0, 0, side, sheet.height))
    reconstruction = sheet.crop((sheet.width - side, 0, sheet.width, sheet.height))
    error = ImageChops.difference(image, reconstruction).convert("L").point(lambda value: min(255, value / FULL))
    wide = Image.new("RGB", (sheet.width + GAP + side, sheet.height), "white")
    wide.paste(sheet, (0, 0))
    drawn = ImageOps.colorize(error, black="#000000", mid="#c2410c", white="#fff7d6")
    for top in range(0, sheet.height, side + GAP):
        wide.paste(drawn.crop((0, top, side, top + side)), (sheet.width + GAP, top))
    out = io.BytesIO()
    wide.save(out, "PNG", optimize=True)
    return out.getvalue()
