"""A file as an upright picture in sRGB, or the reason why it is none.

Rule 1: whatever a file holds, the answer is a right picture or `BadPhoto` with a reason that a
person can act on. Rule 2: the size is checked before a pixel is decoded. Rule 3: a JPEG is decoded
no larger than the largest variant needs.
"""

import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

__all__ = ["BadPhoto", "Opened", "open_photo"]

#: Decoders of formats that photos come in; the others are a larger surface for nothing.
#: That of JPEG turns to MPO by itself.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP")
#: What Pillow's decoders raise for damaged files.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)
#: A file of more bytes is no photo, whatever it says.
BYTES_MAX = 1 << 30
#: EXIF orientations that swap width and height (5 to 8).
LYING = frozenset([5, 6, 7, 8])


class BadPhoto(Exception):
    """This photo cannot be used; the message says why and what would help."""


@dataclass(frozen=True)
class Opened:
    """A photo, decoded and upright."""

    #: `L`, `RGB` or `RGBA`, 8 bits a channel, sRGB. May be smaller than the photo.
    picture: Any
    #: Of the photo itself, upright.
    width: int
    height: int
    #: As the file says: `JPEG`, `PNG`, ...
    format: str
    #: Of the file's pixels: `RGB`, `CMYK`, `I;16`, ...
    mode: str
    #: What became of its colour profile: `none`, `srgb`, `converted`, or `unusable: <why>`.
    profile: str
    exif: Any


def open_photo(
    path: Path, pixels_max: int, wanted: Callable[[int, int], tuple[int, int]]
) -> Opened:
    """Decode the file. `wanted(width, height)` says how large the upright picture must be at least.

    Raises BadPhoto.
    """
    size = path.stat().st_size
    if size == 0:
        raise BadPhoto("the file is empty; send it again")
    if size > BYTES_MAX:
        raise BadPhoto(f"the file has {size:,} bytes, {BYTES_MAX:,} at most; make it smaller")
    with warnings.catch_warnings():
        # Pillow warns of large pictures (we have a limit of our own) and of odd tags.
        warnings.simplefilter("ignore")
        return _opened(path, pixels_max, wanted)


def _opened(path: Path, pixels_max: int, wanted: Callable[[int, int], tuple[int, int]]) -> Opened:
    try:
        image = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        raise BadPhoto(
            "the file is no picture that can be read; give JPEG, PNG, WebP, AVIF, GIF, TIFF or BMP"
        ) from None
    except Image.DecompressionBombError:
        raise BadPhoto(_too_large(None, pixels_max)) from None
    except DAMAGE as error:
        raise BadPhoto(_damaged(error)) from error
    with image:
        pixels = image.width * image.height
        if pixels > pixels_max:
            raise BadPhoto(_too_large(pixels, pixels_max))
        try:
            frames = getattr(image, "n_frames", 1)
            exif = image.getexif()
            orientation = exif.get(ExifTags.Base.Orientation)
        except DAMAGE as error:
            raise BadPhoto(_damaged(error)) from error
        # The further frames of a phone's MPO are small companions of the photo.
        if frames > 1 and image.format != "MPO":
            kind = "pages" if image.format == "TIFF" else "frames"
            raise BadPhoto(f"it has {frames} {kind}; give one of them as a file of its own")
        lying = orientation in LYING
        width, height = image.size[::-1] if lying else image.size
        least = wanted(width, height)
        mode, form = image.mode, image.format or "unknown"
        try:
            image.draft(None, least[::-1] if lying else least)
            image.load()
            upright = ImageOps.exif_transpose(image)
        except DAMAGE as error:
            raise BadPhoto(_damaged(error)) from error
        picture, profile = _in_srgb(upright)
    return Opened(picture, width, height, form, mode, profile, exif)


def _in_srgb(image: Any) -> tuple[Any, str]:
    """Return the picture as `L`, `RGB` or `RGBA`, and what became of its profile."""
    raw = image.info.get("icc_profile")
    image = _eight_bits(image)
    if image.mode == "P" or "transparency" in image.info or image.mode in ("LA", "PA"):
        has_alpha = image.has_transparency_data
        image = image.convert("RGBA" if has_alpha else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    if not raw:
        return _plain(image), "none"
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(raw))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return _plain(image), "srgb"
        alpha = image.getchannel("A") if image.mode == "RGBA" else None
        # Grey that became colour with its transparency still has the profile of grey.
        space = source.profile.xcolor_space.strip()
        mode = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}.get(space)
        if mode is None:
            raise ValueError(f"it is for {space}")
        colours = image.convert("RGB") if alpha is not None and mode == "RGB" else image
        if alpha is not None and mode == "L":
            colours = image.convert("RGB").convert("L")
        if colours.mode != mode:
            raise ValueError(f"it is for {space}, the pixels are {image.mode}")
        converted: Any = ImageCms.profileToProfile(
            colours,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if alpha is not None:
            converted.putalpha(alpha)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        return _plain(image), f"unusable: {_first_line(error)}"
    return converted, "converted"


def _plain(image: Any) -> Any:
    if image.mode in ("L", "RGB", "RGBA"):
        return image
    try:
        return image.convert("RGB")
    except ValueError:
        raise BadPhoto(f"its pixels are {image.mode}; save it as RGB") from None


def _eight_bits(image: Any) -> Any:
    # Pillow's own conversion cuts off whatever is brighter than 255.
    if image.mode.startswith("I;16"):
        transparency = image.info.pop("transparency", None)
        eight = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
        if isinstance(transparency, int):
            eight.info["transparency"] = transparency >> 8
        return eight
    if image.mode in ("I", "F"):
        kind = "whole numbers" if image.mode == "I" else "fractions"
        raise BadPhoto(f"its pixels are 32-bit {kind}; save it with 8 or 16 bits a channel")
    return image


def _too_large(pixels: int | None, pixels_max: int) -> str:
    has = "far more" if pixels is None else f"{pixels:,}"
    return (
        f"it has {has} pixels, {pixels_max:,} at most; make it smaller or raise params.pixels_max"
    )


def _damaged(error: BaseException) -> str:
    return f"the file is damaged ({_first_line(error)}); send it again"


def _first_line(error: BaseException) -> str:
    return (str(error).partition("\n")[0] or type(error).__name__)[:120]
