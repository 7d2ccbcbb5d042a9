"""A variant of a photo, as the bytes of its file."""

from io import BytesIO
from typing import Any

from PIL import ExifTags, Image, ImageEnhance, ImageFilter, ImageOps, features

from jobs.library.image.frame import Frame
from jobs.library.image.photo import DAMAGE, BadPhoto
from jobs.library.image.spec import Filter, Format, Metadata, Variant

__all__ = ["exif_to_keep", "missing_encoders", "render"]

#: Below this margin the coarse first step of a reduction would show.
REDUCING_GAP = 3.0
#: Tags of the file that was read, wrong for the one that is written.
STALE = (
    ExifTags.Base.Orientation,
    ExifTags.Base.ImageWidth,
    ExifTags.Base.ImageLength,
    ExifTags.Base.StripOffsets,
    ExifTags.Base.StripByteCounts,
    ExifTags.Base.RowsPerStrip,
    ExifTags.Base.TileOffsets,
    ExifTags.Base.TileByteCounts,
    ExifTags.Base.BitsPerSample,
    ExifTags.Base.SamplesPerPixel,
    ExifTags.Base.Compression,
    ExifTags.Base.PhotometricInterpretation,
    ExifTags.Base.PlanarConfiguration,
    ExifTags.Base.Predictor,
    ExifTags.Base.SampleFormat,
    ExifTags.Base.ColorMap,
    ExifTags.Base.ExtraSamples,
    ExifTags.Base.InterColorProfile,
    ExifTags.Base.XMLPacket,
)
STALE_EXIF = (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)


def missing_encoders(variants: list[Variant]) -> list[str]:
    """Return the formats that are asked for and that this machine's Pillow cannot write."""
    asked = {variant.format for variant in variants}
    return sorted(form for form in asked & {"webp", "avif"} if not features.check(form))


def render(picture: Any, frame: Frame, variant: Variant, exif: bytes) -> bytes:
    """Return the file of one variant. Raises BadPhoto if its format cannot hold it."""
    left, top, right, bottom = frame.part
    box = (
        left * picture.width,
        top * picture.height,
        right * picture.width,
        bottom * picture.height,
    )
    whole = box == (0, 0, *picture.size)
    if not (whole and picture.size == (frame.width, frame.height)):
        picture = picture.resize(
            (frame.width, frame.height), Image.Resampling.LANCZOS, box, REDUCING_GAP
        )
    for step in variant.filters:
        picture = _filtered(picture, step)
    background = variant.background or ("#ffffff" if variant.format == "jpeg" else None)
    if picture.mode == "RGBA" and background is not None:
        ground = Image.new("RGB", picture.size, background)
        ground.paste(picture, mask=picture.getchannel("A"))
        picture = ground
    # What Pillow remembers of the file that was read would be written along.
    picture.info = {}
    out = BytesIO()
    try:
        picture.save(out, variant.format.upper(), **_options(variant.format, variant.quality, exif))
    except (OSError, ValueError) as error:
        raise BadPhoto(
            f"variant {variant.name!r} of {frame.width} x {frame.height} pixels cannot be written "
            f"as {variant.format} ({str(error)[:120]}); give another size or format"
        ) from error
    return out.getvalue()


def _options(form: Format, quality: int, exif: bytes) -> dict[str, Any]:
    options: dict[str, Any] = {"exif": exif} if exif else {}
    if form == "jpeg":
        return options | {"quality": quality, "optimize": True, "progressive": True}
    if form == "webp":
        return options | {"quality": quality, "method": 4}
    if form == "avif":
        # One thread: tiles encoded side by side are put together in no fixed order.
        return options | {"quality": quality, "speed": 6, "max_threads": 1}
    return options


def exif_to_keep(exif: Any, metadata: Metadata) -> bytes:
    """Return the EXIF block for the variants, empty if none is to be kept or it is damaged."""
    if metadata == "none":
        return b""
    kept = Image.Exif()
    try:
        for tag, value in exif.items():
            if tag not in (*STALE, *(ifd.value for ifd in ExifTags.IFD)):
                kept[tag] = value
        details = dict(exif.get_ifd(ExifTags.IFD.Exif))
        for tag in (*STALE_EXIF, ExifTags.IFD.MakerNote, ExifTags.IFD.Interop):
            # The maker's notes hold offsets into the old file, and often a place.
            details.pop(tag, None)
        if details:
            kept.get_ifd(ExifTags.IFD.Exif).update(details)
        place = exif.get_ifd(ExifTags.IFD.GPSInfo)
        if metadata == "all" and place:
            kept.get_ifd(ExifTags.IFD.GPSInfo).update(place)
        return kept.tobytes() if len(kept) or details or place else b""
    except DAMAGE:
        return b""  # A photo with a broken EXIF block is a photo without one.


def _filtered(picture: Any, step: Filter) -> Any:
    if step.kind == "blur":
        # Premultiplied: or the colour of what is transparent would bleed in.
        if picture.mode == "RGBA":
            premultiplied = picture.convert("RGBa")
            return premultiplied.filter(ImageFilter.GaussianBlur(step.strength)).convert("RGBA")
        return picture.filter(ImageFilter.GaussianBlur(step.strength))
    if picture.mode == "RGBA":
        colours = _coloured(picture.convert("RGB"), step).convert("RGB")
        colours.putalpha(picture.getchannel("A"))
        return colours
    return _coloured(picture, step)


def _coloured(picture: Any, step: Filter) -> Any:
    match step.kind:
        case "sharpen":
            return picture.filter(ImageFilter.UnsharpMask(1.0, round(step.strength), 2))
        case "grayscale":
            return picture.convert("L")
        case "autocontrast":
            return ImageOps.autocontrast(picture)
        case "brightness":
            return ImageEnhance.Brightness(picture).enhance(step.strength)
        case "contrast":
            return ImageEnhance.Contrast(picture).enhance(step.strength)
        case _:
            return ImageEnhance.Color(picture).enhance(step.strength)
