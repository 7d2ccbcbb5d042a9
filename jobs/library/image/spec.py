"""What a variant may be: its frame, its filters, its file format."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["SUFFIXES", "Filter", "Fit", "Format", "Gravity", "Metadata", "Variant"]

Fit = Literal["inside", "cover", "exact"]
Gravity = Literal[
    "center",
    "north",
    "northeast",
    "east",
    "southeast",
    "south",
    "southwest",
    "west",
    "northwest",
]
Format = Literal["jpeg", "png", "webp", "avif"]
#: `none`: no EXIF; `no_gps`: without place, maker's notes and thumbnail; `all`: all but the last.
Metadata = Literal["none", "no_gps", "all"]

SUFFIXES: dict[Format, str] = {"jpeg": "jpg", "png": "png", "webp": "webp", "avif": "avif"}
#: WebP's limit; what is larger in another format is no variant but another photo.
EDGE_MAX = 16_383

Edge = Annotated[int, Field(ge=1, le=EDGE_MAX, description="Pixels")]

#: For each filter: its amount if none is given, and the least and most it takes.
AMOUNTS: dict[str, tuple[float, float, float]] = {
    "blur": (2.0, 0.0, 100.0),  # radius in pixels of the variant
    "sharpen": (100.0, 0.0, 500.0),  # percent
    "brightness": (1.0, 0.0, 4.0),  # factor, as the two below
    "contrast": (1.0, 0.0, 4.0),
    "saturation": (1.0, 0.0, 4.0),
    "grayscale": (1.0, 1.0, 1.0),  # all or nothing, as the one below
    "autocontrast": (1.0, 1.0, 1.0),
}


class Filter(BaseModel):
    """One step after the resizing."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal[
        "blur", "sharpen", "brightness", "contrast", "saturation", "grayscale", "autocontrast"
    ]
    amount: Annotated[
        float | None,
        Field(
            description="blur: radius in pixels; sharpen: percent; brightness, contrast, "
            "saturation: a factor, 1 changes nothing; none for the others"
        ),
    ] = None

    @model_validator(mode="after")
    def _within_bounds(self) -> Self:
        _, least, most = AMOUNTS[self.kind]
        if self.amount is not None and not least <= self.amount <= most:
            raise ValueError(
                f"amount of {self.kind} is {self.amount:g}; give {least:g} to {most:g}"
            )
        return self

    @property
    def strength(self) -> float:
        """The amount, or what stands for none."""
        return AMOUNTS[self.kind][0] if self.amount is None else self.amount


class Variant(BaseModel):
    """One picture to make of each photo."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
    #: Without both the photo keeps its size; `inside` may do with one of them.
    width: Edge | None = None
    height: Edge | None = None
    fit: Annotated[
        Fit,
        Field(
            description="inside: all of the photo, within width and height; cover: both filled, "
            "the rest cut off; exact: stretched to both"
        ),
    ] = "inside"
    gravity: Annotated[Gravity, Field(description="What `cover` keeps")] = "center"
    enlarge: Annotated[bool, Field(description="Whether small photos may grow")] = False
    format: Format = "jpeg"
    quality: Annotated[int, Field(ge=1, le=100, description="Of all formats but png")] = 82
    filters: Annotated[list[Filter], Field(max_length=8)] = []
    background: Annotated[
        str | None,
        Field(
            pattern=r"^#[0-9a-fA-F]{6}$",
            description="What shows through where the photo is transparent; jpeg has white if "
            "none is given, the other formats stay transparent",
        ),
    ] = None

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if self.fit != "inside" and (self.width is None or self.height is None):
            raise ValueError(f"variant {self.name!r}: fit {self.fit!r} needs both width and height")
        return self
