"""Reads what a source is: streams, size as shown, and when each of its frames is shown.

Rule 1: times come from the packets, without decoding; only the first frame is decoded, which shows
that the source can be, and how it is turned. Rule 2: whatever is wrong with a source for good is a
`Discard` that says what it is.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from jobs.context import Context
from jobs.library.video import READ_ONLY_FILES, needs_video
from jobs.outcome import Discard

__all__ = ["Source", "probe"]

#: A header that promises more than this beyond the last packet belongs to a file cut short.
MISSING_S = 1.0
#: These find a keyframe by their index. Others guess a place in the file, so one seeks earlier.
INDEXED = {"mov", "matroska", "webm"}
GUESS_MARGIN_S = 1.5
#: Of sound, in Hz: others become 48 kHz.
RATES_KEPT = {44_100, 48_000}
RATE = 48_000
#: A small file can claim a frame that fills the memory. 8K has half of this.
PIXELS_MAX = 1 << 26
PACKETS_PER_LOOK = 20_000
#: Trouble of the machine, which may pass.
NOT_THE_FILE = {errno.EIO, errno.ENOMEM, errno.EACCES, errno.ENOENT, errno.EMFILE, errno.ENFILE}


@dataclass(frozen=True, slots=True)
class Source:
    """What a source is. Ticks are those of its video stream."""

    video: int
    audio: int | None
    audio_rate: int
    audio_channels: int
    tick_s: Fraction
    #: Size as it is shown: turned upright, pixels made square.
    width: int
    height: int
    rate: Fraction
    #: Frame times and keyframe times in order; `pts` is empty where the file does not tell them.
    pts: list[int]
    keys: list[int]
    first: int
    end: int
    margin_s: float


def probe(ctx: Context, path: Path) -> Source:
    """Return what the file is. Raises Discard for what cannot be transcoded, and says why."""
    with needs_video():
        import av
        from av.stream import Disposition
    if path.stat().st_size == 0:
        raise Discard("source: the file is empty")
    with (
        _refusing(
            av, "source: not a video that can be read; MP4, MOV, MKV, WebM, AVI and MPEG can"
        ),
        av.open(f"file:{path}", container_options=READ_ONLY_FILES) as file,
    ):
        films = [s for s in file.streams.video if not s.disposition & Disposition.attached_pic]
        if not films:
            raise Discard("source: there is no video in this file")
        context = films[0].codec_context
        if context.width * context.height > PIXELS_MAX:
            raise Discard(
                f"source: frames of {context.width}x{context.height} pixels; {PIXELS_MAX} at most"
            )
        with _refusing(av, "source: the video cannot be decoded"):
            frame = next(file.decode(films[0]), None)
        if frame is None:
            raise Discard("source: the video holds no frame that can be decoded")
        video, size = films[0].index, _shown_size(films[0], frame)
        audio, rate, channels = _sound(file)
        indexed = bool(INDEXED & set(file.format.name.split(",")))
    # Opened anew, because not every format can go back to its first packet.
    with (
        _refusing(av, "source: the file is cut short or damaged"),
        av.open(f"file:{path}", container_options=READ_ONLY_FILES) as file,
    ):
        times = _Times(file.streams[video], guessed=file.format.name == "avi")
        times.read(ctx, file)
    return Source(
        video=video,
        audio=audio,
        audio_rate=rate,
        audio_channels=channels,
        tick_s=times.tick_s,
        width=size[0],
        height=size[1],
        rate=times.rate,
        pts=times.pts if times.known else [],
        keys=sorted(times.keys),
        first=times.pts[0],
        end=times.end,
        margin_s=0.0 if indexed else GUESS_MARGIN_S,
    )


def _sound(file: Any) -> tuple[int | None, int, int]:
    """Return the index of the first audio stream that can be read, its rate and channels to be."""
    for track in file.streams.audio:
        rate = track.codec_context.sample_rate
        if rate:
            channels = min(2, track.codec_context.channels or 2)
            return track.index, rate if rate in RATES_KEPT else RATE, channels
    return None, 0, 0


class _Times:
    """When each frame is shown, gathered packet by packet."""

    def __init__(self, film: Any, *, guessed: bool) -> None:
        self._film, self._index = film, film.index
        #: AVI knows only when frames are decoded; where that differs, showing times are guesses.
        self._guessed = guessed
        self.tick_s: Fraction = film.time_base
        self.pts: list[int] = []
        self.keys: list[int] = []
        #: Whether every packet told a time of its own.
        self.known = True
        self.end = 0

    def read(self, ctx: Context, file: Any) -> None:
        last_dts, reached_s = None, 0.0
        for count, packet in enumerate(file.demux()):
            if count % PACKETS_PER_LOOK == 0:
                ctx.progress(message="Reading the frame times")
            moment = packet.dts if packet.pts is None else packet.pts
            if moment is None or packet.size == 0:
                self.known &= packet.size == 0 or packet.stream.index != self._index
                continue
            reached_s = max(reached_s, float((moment + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != self._index:
                continue
            if packet.dts is not None and last_dts is not None and packet.dts < last_dts:
                raise Discard(
                    "source: its clock runs backwards, as in parts put one after the other; "
                    "join them first, for example with `ffmpeg -i in -c copy out.mkv`"
                )
            last_dts = packet.dts if packet.dts is not None else last_dts
            self._frame(packet, moment)
        if not self.pts:
            raise Discard("source: the video holds no frames")
        self._settle(file, reached_s)

    def _frame(self, packet: Any, moment: int) -> None:
        self.known &= packet.pts is not None and not (self._guessed and packet.pts != packet.dts)
        if packet.is_discard:
            return  # An edit list leaves it out: it is decoded, not shown.
        self.pts.append(moment)
        if packet.is_keyframe:
            self.keys.append(moment)
        self.end = max(self.end, moment + (packet.duration or 0))

    def _settle(self, file: Any, reached_s: float) -> None:
        self.pts.sort()
        span = self.pts[-1] - self.pts[0]
        #: Two frames at one time: fields, or a file without times.
        self.known &= len(self.pts) == len(set(self.pts)) and bool(self.keys)
        step = max(1, round(span / max(1, len(self.pts) - 1)))
        if span == 0 and self._film.guessed_rate:
            step = max(1, round(1 / (self._film.guessed_rate * self.tick_s)))
        if self.end <= self.pts[-1]:
            self.end = self.pts[-1] + step
        self.rate = len(self.pts) / ((self.end - self.pts[0]) * self.tick_s)
        promised_s = (file.duration or 0) / 1e6
        # Some formats count it from 0, some from the first packet: the longer reach decides.
        if promised_s > max(reached_s, reached_s - (file.start_time or 0) / 1e6) + MISSING_S:
            raise Discard(
                f"source: cut short: it should last {promised_s:.1f} s, but ends at "
                f"{reached_s:.1f} s; upload the whole file"
            )


def _shown_size(film: Any, frame: Any) -> tuple[int, int]:
    aspect = film.sample_aspect_ratio or Fraction(1)
    width, height = round(frame.width * aspect), frame.height
    # Only quarter turns swap the sides; ffmpeg turns the frames by the same display matrix.
    return (height, width) if round(frame.rotation / 90) % 2 else (width, height)


@contextmanager
def _refusing(av: Any, reason: str) -> Iterator[None]:
    try:
        yield
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        if getattr(error, "errno", None) in NOT_THE_FILE:
            raise
        raise Discard(f"{reason} ({getattr(error, 'strerror', None) or error})") from error
