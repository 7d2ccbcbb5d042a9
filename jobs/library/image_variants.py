"""`image.variants`: pictures of several sizes and formats of each photo of a set.

Rule 1: one photo is one chunk's work, or a few small ones are; none is decoded twice. Rule 2: a
photo that cannot be used is named with the reason, and is no reason to try again; `bad_photos`
says whether it fails the job. Rule 3: this file imports no Pillow: the registry imports every job
type in every process.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.context import Context
from jobs.errors import InvalidInput, NotFound
from jobs.fan_out import fan_out
from jobs.library.image.frame import Frame, frame_of
from jobs.library.image.sources import Photo, bring, photos_of, shown
from jobs.library.image.spec import SUFFIXES, Metadata, Variant
from jobs.outcome import Discard
from jobs.results import Results

__all__ = ["INDEX_NAME", "VariantsParams", "image_variants"]

INDEX_NAME = "index.json"
#: Small photos share a chunk, for starting one costs more than they do.
CHUNK_BYTES, CHUNK_PHOTOS = 4 << 20, 16
#: Refused photos told in the result; the index has them all.
REFUSED_TOLD = 50
#: A picture is decoded with this many times the pixels of its largest variant, along each edge.
DECODE_MARGIN = 2.0

Source = Annotated[str, Field(min_length=1, max_length=2048)]


class VariantsParams(BaseModel):
    """Which photos, and what to make of each."""

    model_config = ConfigDict(extra="forbid")

    sources: Annotated[
        list[Source],
        Field(
            min_length=1,
            max_length=100_000,
            description="Photos: upload:, output:, s3:// ... URIs, or paths, folders and globs "
            "within the folders that the operator opened",
        ),
    ]
    variants: Annotated[list[Variant], Field(min_length=1, max_length=20)]
    metadata: Annotated[
        Metadata,
        Field(
            description="EXIF of the variants: none, all but the place (no_gps), or all. "
            "Orientation is applied, colours become sRGB, XMP is not kept"
        ),
    ] = "no_gps"
    bad_photos: Annotated[
        Literal["report", "fail"],
        Field(description="report: a photo that cannot be used is listed; fail: the job fails"),
    ] = "report"
    pixels_max: Annotated[
        int, Field(ge=1, le=178_000_000, description="A larger photo is refused undecoded")
    ] = 100_000_000

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        counted = Counter(variant.name for variant in self.variants)
        twice = sorted(name for name, count in counted.items() if count > 1)
        if twice:
            raise ValueError(f"variants: the name {twice[0]!r} stands there twice; rename one")
        return self


class Photos(BaseModel):
    """What one chunk makes variants of."""

    photos: list[Photo]


class Made(BaseModel):
    """One variant of a photo."""

    name: str
    uri: str
    format: str
    width: int
    height: int
    bytes: int


class PhotoDone(BaseModel):
    """What became of a photo: variants and facts, or the reason why there are none."""

    index: int
    source: str
    refused: str | None = None
    width: int | None = None
    height: int | None = None
    sha256: str | None = None
    #: URI of the JSON file that tells all that is known of it.
    metadata: str | None = None
    variants: list[Made] = []


def _split(ctx: Context, params: VariantsParams) -> Iterator[Photos]:
    missing = _missing_encoders(params.variants)
    if missing:
        raise Discard(
            f"variants: Pillow on this worker cannot write {' and '.join(missing)}; "
            "use jpeg or png, or install a Pillow that can"
        )
    together: list[Photo] = []
    size = 0
    for photo in photos_of(params.sources, ctx.files):
        ctx.check()
        own = CHUNK_BYTES if photo.size is None else photo.size
        if together and (size + own > CHUNK_BYTES or len(together) == CHUNK_PHOTOS):
            yield Photos(photos=together)
            together, size = [], 0
        together.append(photo)
        size += own
    yield Photos(photos=together)


def _join(
    ctx: Context, params: VariantsParams, results: Results[list[PhotoDone]]
) -> dict[str, Any]:
    """Write the index of all photos and return the counts."""
    photos = variants = size = 0
    refused: list[dict[str, Any]] = []
    refused_count = 0
    ctx.progress(0.0, "Writing the index")
    with ctx.files.open_output(INDEX_NAME) as out:
        # By hand, photo by photo: a hundred thousand of them need not be in memory.
        out.write(b'{"photos": [')
        for done in (photo for chunk in results.values() for photo in chunk):
            out.write(b",\n" if photos else b"\n")
            out.write(done.model_dump_json(exclude_none=True).encode())
            photos += 1
            variants += len(done.variants)
            size += sum(made.bytes for made in done.variants)
            if done.refused is not None:
                refused_count += 1
                if len(refused) < REFUSED_TOLD:
                    refused.append({"source": done.source, "reason": done.refused})
        counts = {"refused": refused_count, "variants": variants, "bytes": size}
        out.write(b'\n],\n"total": ' + json.dumps({"photos": photos, **counts}).encode() + b"}\n")
    ctx.progress(1.0, f"{variants} pictures of {photos - refused_count} photos are ready")
    return {
        "file": INDEX_NAME,
        "photos": photos - refused_count,
        "variants": variants,
        "bytes": size,
        "refused_count": refused_count,
        "refused": refused,
    }


@fan_out("image.variants", split=_split, join=_join, timeout_s=1800)
def image_variants(ctx: Context, params: VariantsParams, chunk: Photos) -> list[PhotoDone]:
    """Make pictures of several sizes and formats of each photo, with an index of all."""
    photo_module = _photo_module()
    done = []
    for n, photo in enumerate(chunk.photos):
        name = shown(photo.source)
        ctx.progress(n / len(chunk.photos), f"Photo {photo.index + 1}: {name[-80:]}")
        try:
            done.append(_one(ctx, params, photo))
        except (photo_module.BadPhoto, InvalidInput, NotFound, FileNotFoundError) as error:
            reason = _reason(error)
            if params.bad_photos == "fail":
                raise Discard(f"{name}: {reason}; or set params.bad_photos to 'report'") from error
            ctx.log(f"{name} is refused: {reason}")
            done.append(PhotoDone(index=photo.index, source=name, refused=reason))
    return done


def _one(ctx: Context, params: VariantsParams, photo: Photo) -> PhotoDone:
    path = bring(photo, ctx.files)
    if not path.is_file():
        raise NotFound("file", shown(photo.source))
    try:
        return _made(ctx, params, photo, path)
    finally:
        # A fetched copy goes at once: a chunk of many needs the disk of one. The operator's stay.
        if path.is_relative_to(ctx.files.workdir):
            path.unlink(missing_ok=True)


def _made(ctx: Context, params: VariantsParams, photo: Photo, path: Path) -> PhotoDone:
    from jobs.library.image import photo as opening
    from jobs.library.image.facts import colours, exif_facts
    from jobs.library.image.render import exif_to_keep, render

    opened = opening.open_photo(
        path, params.pixels_max, lambda wide, high: _decoded_size(wide, high, params.variants)
    )
    exif = exif_to_keep(opened.exif, params.metadata)
    # All of them before the first is kept: a refused photo leaves no files.
    pictures: list[tuple[Variant, Frame, bytes]] = []
    for variant in params.variants:
        ctx.check()
        frame = frame_of(opened.width, opened.height, variant)
        pictures.append((variant, frame, render(opened.picture, frame, variant, exif)))
    made = []
    for variant, frame, data in pictures:
        uri = ctx.files.write(f"{photo.index:06d}-{variant.name}.{SUFFIXES[variant.format]}", data)
        made.append(
            Made(
                name=variant.name,
                uri=uri,
                format=variant.format,
                width=frame.width,
                height=frame.height,
                bytes=len(data),
            )
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    facts = {
        "source": shown(photo.source),
        "sha256": digest,
        "bytes": path.stat().st_size,
        "format": opened.format,
        "mode": opened.mode,
        "width": opened.width,
        "height": opened.height,
        "profile": opened.profile,
        "exif": exif_facts(opened.exif, params.metadata == "all"),
        **colours(opened.picture),
        "variants": [picture.model_dump() for picture in made],
    }
    text = json.dumps(facts, ensure_ascii=False, indent=1)
    uri = ctx.files.write(f"{photo.index:06d}.json", text.encode())
    return PhotoDone(
        index=photo.index,
        source=shown(photo.source),
        width=opened.width,
        height=opened.height,
        sha256=digest,
        metadata=uri,
        variants=made,
    )


def _decoded_size(width: int, height: int, variants: list[Variant]) -> tuple[int, int]:
    """Return how large a photo of this size must be decoded for all of its variants."""
    sizes = [
        frame_of(width, height, variant).decoded_at_least(DECODE_MARGIN) for variant in variants
    ]
    return min(width, max(w for w, _ in sizes)), min(height, max(h for _, h in sizes))


def _reason(error: Exception) -> str:
    if isinstance(error, InvalidInput):
        return error.reason
    if isinstance(error, FileNotFoundError):
        return "there is no such file; correct the source"
    return f"{error}; correct the source" if isinstance(error, NotFound) else str(error)


def _photo_module() -> Any:
    try:
        from jobs.library.image import photo
    except ImportError as error:
        raise Discard(
            f"image.variants needs Pillow on the worker ({error}); "
            'install it with: pip install "drayman[image]"'
        ) from error
    return photo


def _missing_encoders(variants: list[Variant]) -> list[str]:
    _photo_module()
    from jobs.library.image.render import missing_encoders

    return missing_encoders(variants)
