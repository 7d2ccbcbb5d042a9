"""What travels between the parts of a transcode: facts of the source, the ladder, chunks.

Rule 1: every frame belongs to exactly one segment: the one with `start <= pts < end`. Rule 2: a
plan is made once, by the split; what depends on the machine (encoder, threads) is settled there, so
that all segments fit each other.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import inf
from typing import Literal

from pydantic import BaseModel

__all__ = ["Chunk", "Made", "Plan", "Rung", "Still", "cuts", "seek_s", "segment_count", "segments"]

#: Longer sources get longer segments: each one costs a copy of the source where it is an upload.
SEGMENTS_MAX = 128
SEGMENT_S = 10.0
#: How far, in shares of a segment, a cut may move to reach a keyframe of the source. Moving it
#: makes segments uneven; staying costs decoding from the keyframe before.
REACH = 0.25


class Rung(BaseModel):
    """One rendition, settled. Sizes are even, as 4:2:0 wants them."""

    name: str
    width: int
    height: int
    crf: float


class Plan(BaseModel):
    """What every chunk of one transcode agrees on."""

    #: Index of the video stream in the file, and of the audio stream if there is one.
    video: int
    audio: int | None
    #: Hz and channels of the audio that comes out.
    audio_rate: int
    audio_channels: int
    #: Seconds per tick, as numerator and denominator.
    tick: tuple[int, int]
    #: When the first frame is shown, and when the last one ends; ticks.
    first: int
    end: int
    ladder: list[Rung]
    #: Frames from one keyframe of the output to the next.
    gop: int
    encoder: Literal["libx264", "h264_nvenc"]
    threads: int

    @property
    def tick_s(self) -> Fraction:
        """Seconds per tick."""
        return Fraction(*self.tick)

    @property
    def duration_s(self) -> Fraction:
        """From the first frame's start to the last one's end."""
        return (self.end - self.first) * self.tick_s

    @property
    def audio_samples(self) -> int:
        """Samples that end where the video does, in whole AAC frames: within half a frame, 12 ms.

        A whole number, because players differ in whether they honour a cut inside the last frame.
        """
        return max(1, round(self.duration_s * self.audio_rate / AAC_FRAME)) * AAC_FRAME


#: Samples per channel in one frame of AAC-LC, and in what its encoder puts before the first.
AAC_FRAME = 1024


class Still(BaseModel):
    """One picture to take: the frame shown at `pts`, reached from `seek`."""

    name: str
    pts: int
    seek: float | None
    width: int
    height: int


class Chunk(BaseModel):
    """One part of the work, for one process of ffmpeg (a still each for `stills`)."""

    kind: Literal["segment", "audio", "stills"]
    plan: Plan
    #: Of a segment: its frames in ticks; None is open-ended, for a source without frame times.
    start: int | None = None
    end: int | None = None
    #: How many frames of the source come before it.
    at: int = 0
    #: Seconds to seek to; None reads from the start of the file.
    seek: float | None = None
    #: How many frames it must have; None if only decoding can tell.
    frames: int | None = None
    stills: list[Still] = []


class Made(BaseModel):
    """What a chunk tells the join, beside its files."""

    chunk: Chunk
    frames: int = 0


def cuts(pts: Sequence[int], keys: Sequence[int], wanted: int, gop: int) -> list[int]:
    """Return where `wanted` segments of about equal length start, as indices into `pts`, ascending.

    `pts` and `keys` are in order of time; fewer are returned if there are fewer frames. Near
    the even spacing, the best is a keyframe of the source where the output has one anyway, then any
    keyframe of the source (nothing is decoded twice), then any of the output, then the frame there.
    """
    wanted, span = min(wanted, len(pts)), pts[-1] - pts[0]
    grid = pts[::gop]
    both = sorted(set(grid) & set(keys))
    found = [0]
    for number in range(1, wanted):
        ideal = pts[0] + span * number / wanted
        places = (_nearest(kind, ideal) for kind in (both, keys, grid))
        near = (place for place in places if abs(place - ideal) <= REACH * span / wanted)
        index = bisect_right(pts, next(near, ideal)) - 1
        # Where frames are few for a while, every segment still gets one.
        found.append(min(max(index, found[-1] + 1), len(pts) - wanted + number))
    return found


def _nearest(places: Sequence[int], moment: float) -> float:
    at = bisect_right(places, moment)
    around = places[max(0, at - 1) : at + 1]
    return min(around, key=lambda place: abs(place - moment), default=inf)


def seek_s(pts: int, keys: Sequence[int], tick_s: Fraction, margin_s: float) -> float | None:
    """Return seconds to seek to for decoding the frame at `pts`; None is the start of the file.

    Just after the last keyframe at or before it: rounded up to ffmpeg's microsecond, because the
    microsecond before belongs to the keyframe before.
    """
    at = bisect_right(keys, pts) - 1
    if at <= 0:
        return None
    return -(-keys[at] * tick_s.numerator * 1_000_000 // tick_s.denominator) / 1e6 - margin_s


def segments(
    pts: Sequence[int],
    keys: Sequence[int],
    plan: Plan,
    *,
    wanted: int,
    margin_s: float,
) -> Iterator[Chunk]:
    """Yield the segments of a source whose frames are shown at `pts`."""
    starts = cuts(pts, keys, wanted, plan.gop)
    for at, nxt in zip(starts, [*starts[1:], len(pts)], strict=True):
        yield Chunk(
            kind="segment",
            plan=plan,
            start=pts[at],
            end=pts[nxt] if nxt < len(pts) else plan.end,
            at=at,
            seek=seek_s(pts[at], keys, plan.tick_s, margin_s),
            frames=nxt - at,
        )


def segment_count(duration_s: float, target_s: float | None, least: int) -> int:
    """Return how many segments a source of this length gets."""
    target = target_s or max(SEGMENT_S, duration_s / SEGMENTS_MAX)
    return max(1, least, round(duration_s / target))
