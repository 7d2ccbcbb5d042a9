"""Sizes and crops, in whole numbers of pixels.

Rule: a photo grows only where the variant says so; what is too small for its frame gets a smaller
frame of the same shape.
"""

from dataclasses import dataclass

from jobs.library.image.spec import Variant

__all__ = ["Frame", "frame_of"]

#: Where the kept part lies, as shares of what is cut off to its left and above it.
PLACES = {
    "center": (0.5, 0.5),
    "north": (0.5, 0.0),
    "northeast": (1.0, 0.0),
    "east": (1.0, 0.5),
    "southeast": (1.0, 1.0),
    "south": (0.5, 1.0),
    "southwest": (0.0, 1.0),
    "west": (0.0, 0.5),
    "northwest": (0.0, 0.0),
}


@dataclass(frozen=True)
class Frame:
    """Which part of the photo becomes a picture of which size."""

    width: int
    height: int
    #: Left, top, right, bottom in shares of the photo, since it may have been decoded smaller.
    part: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)

    def decoded_at_least(self, margin: float) -> tuple[int, int]:
        """Return the size of the whole photo at which its part has `margin` times these pixels."""
        left, top, right, bottom = self.part
        return (
            max(1, round(margin * self.width / (right - left))),
            max(1, round(margin * self.height / (bottom - top))),
        )


def frame_of(width: int, height: int, variant: Variant) -> Frame:
    """Return the frame of a variant of a photo of this size, upright."""
    wide, high = variant.width, variant.height
    if wide is None and high is None:
        return Frame(width, height)
    if variant.fit == "inside" or wide is None or high is None:
        scales = [
            asked / own for asked, own in ((wide, width), (high, height)) if asked is not None
        ]
        scale = min(scales) if variant.enlarge else min(1.0, *scales)
        return Frame(_pixels(width * scale), _pixels(height * scale))
    if variant.fit == "exact":
        shrink = 1.0 if variant.enlarge else min(1.0, width / wide, height / high)
        return Frame(_pixels(wide * shrink), _pixels(high * shrink))
    scale = max(wide / width, high / height)
    shrink = 1.0 if variant.enlarge else min(1.0, 1 / scale)
    share_x, share_y = wide / (width * scale), high / (height * scale)
    place_x, place_y = PLACES[variant.gravity]
    left, top = (1 - share_x) * place_x, (1 - share_y) * place_y
    part = (left, top, min(1.0, left + share_x), min(1.0, top + share_y))
    return Frame(_pixels(wide * shrink), _pixels(high * shrink), part)


def _pixels(length: float) -> int:
    return max(1, round(length))
