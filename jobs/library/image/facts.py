"""What is told about a photo: when and how it was taken, and its colours."""

import math
from collections.abc import Mapping
from typing import Any

from PIL import ExifTags, Image

from jobs.library.image.blurhash import blurhash
from jobs.library.image.photo import DAMAGE

__all__ = ["colours", "exif_facts"]

TAGS = ExifTags.Base
#: For each fact of the camera: its name and its tag, in the main block or in that of details.
TEXTS = {"make": TAGS.Make, "model": TAGS.Model}
DETAIL_TEXTS = {"lens": TAGS.LensModel, "taken_at": TAGS.DateTimeOriginal}
DETAIL_NUMBERS = {
    "exposure_s": TAGS.ExposureTime,
    "f_number": TAGS.FNumber,
    "iso": TAGS.ISOSpeedRatings,
    "focal_length_mm": TAGS.FocalLength,
}
#: Of the picture whose colours are counted.
PALETTE_EDGE = 64
PALETTE_COLOURS = 5


def exif_facts(exif: Any, with_place: bool) -> dict[str, Any]:
    """Return what the EXIF block tells, without what it does not; the place only if asked for."""
    try:
        details = exif.get_ifd(ExifTags.IFD.Exif)
        place = exif.get_ifd(ExifTags.IFD.GPSInfo) if with_place else {}
        orientation = exif.get(TAGS.Orientation)
        facts: dict[str, Any] = {
            **{name: _text(exif.get(tag)) for name, tag in TEXTS.items()},
            **{name: _text(details.get(tag)) for name, tag in DETAIL_TEXTS.items()},
            **{name: _number(details.get(tag)) for name, tag in DETAIL_NUMBERS.items()},
            # What is no number turns nothing either.
            "orientation": orientation if isinstance(orientation, int) else None,
            "latitude": _degrees(place, ExifTags.GPS.GPSLatitude, "S"),
            "longitude": _degrees(place, ExifTags.GPS.GPSLongitude, "W"),
        }
    except DAMAGE:
        return {}  # Damaged tags tell nothing; the picture is whole without them.
    return {name: value for name, value in facts.items() if value is not None}


def colours(picture: Any) -> dict[str, Any]:
    """Return the average colour, the dominant ones with their shares, and a BlurHash.

    What is transparent counts as white.
    """
    small = picture
    if small.mode == "RGBA":
        ground = Image.new("RGB", small.size, "#ffffff")
        ground.paste(small, mask=small.getchannel("A"))
        small = ground
    small = small.convert("RGB").resize((PALETTE_EDGE, PALETTE_EDGE), Image.Resampling.BOX)
    average = small.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    indexed = small.quantize(PALETTE_COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette = indexed.getpalette()
    counted = sorted(indexed.getcolors(), key=lambda item: (-item[0], item[1]))
    dominant = [
        {
            "colour": _hex(palette[3 * index : 3 * index + 3]),
            "share": round(count / PALETTE_EDGE**2, 3),
        }
        for count, index in counted
    ]
    return {"average": _hex(average), "dominant": dominant, "blurhash": blurhash(small)}


def _hex(colour: Any) -> str:
    return "#" + "".join(f"{value:02x}" for value in colour)


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        return None
    return value.replace("\0", "").strip()[:200] or None


def _number(value: Any) -> float | int | None:
    if isinstance(value, tuple):
        value = value[0] if value else None
    if value is None:
        return None
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if number == int(number) else round(number, 6)


def _degrees(place: Mapping[int, Any], tag: int, negative: str) -> float | None:
    """Return degrees from EXIF's three numbers; the tag before says which half of the earth."""
    parts = place.get(tag)
    if not parts or len(parts) != 3:
        return None
    degrees: float = sum(float(part) / 60**n for n, part in enumerate(parts))
    if not math.isfinite(degrees):
        return None
    return round(-degrees if str(place.get(tag - 1)).startswith(negative) else degrees, 6)
