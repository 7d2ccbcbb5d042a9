"""Segments into one file without a seam, and that file as HLS.

Rule 1: nothing is encoded here; packets are copied and their times set anew. Rule 2: a packet's
decoding time is the showing time of the frame `REORDER` places before it. That is what one long
encode writes, so the seams leave no trace: no gap, no step back, no drift.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from heapq import merge
from itertools import chain, islice
from pathlib import Path
from typing import Any

from jobs.library.video import READ_ONLY_FILES, needs_video
from jobs.library.video.plan import AAC_FRAME, Plan, Rung
from jobs.outcome import Discard

__all__ = ["Joined", "Piece", "join", "master_playlist", "peak_bits_per_s"]

#: Frames that H.264 with a B-pyramid holds back at most.
REORDER = 2
#: The edit lists of the segments stand in the way of their raw times.
RAW = {**READ_ONLY_FILES, "ignore_editlist": "1"}


@dataclass(frozen=True, slots=True)
class Piece:
    """One encoded segment of one rendition, and where its frames lie, in ticks of the source."""

    path: Path
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Joined:
    """What a rendition came to."""

    frames: int
    #: As in `CODECS` of a playlist: `avc1.640028`.
    codec: str


def join(
    plan: Plan,
    pieces: Sequence[Piece],
    sound: Path | None,
    target: Path,
    seen: Callable[[int], None],
) -> Joined:
    """Write the rendition whose segments are `pieces`, with its sound, to `target` (MP4).

    `seen` is called with the number of each piece done. Raises Discard if they do not fit together.
    """
    with needs_video():
        import av
    with ExitStack() as stack:
        template = stack.enter_context(av.open(str(pieces[0].path), options=RAW)).streams.video[0]
        header = bytes(template.codec_context.extradata)
        options = {"movflags": "+faststart", "video_track_timescale": str(plan.tick[1])}
        output = stack.enter_context(av.open(str(target), "w", format="mp4", options=options))
        film = output.add_stream_from_template(template)
        film.time_base = plan.tick_s
        count = 0

        def pictures() -> Iterator[Any]:
            nonlocal count
            for packet in _retimed(_all_pieces(av, plan, pieces, header, seen), plan):
                count += 1
                packet.stream = film
                yield packet

        tracks = [pictures()]
        if sound is not None:
            source = stack.enter_context(av.open(str(sound), options=RAW))
            tracks.append(_sound(source, output, plan))
        for packet in merge(*tracks, key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)
    return Joined(count, f"avc1.{header[1:4].hex()}")


def _all_pieces(
    av: Any,
    plan: Plan,
    pieces: Sequence[Piece],
    header: bytes,
    seen: Callable[[int], None],
) -> Iterator[list[Any]]:
    for number, piece in enumerate(pieces):
        seen(number)
        with av.open(str(piece.path), options=RAW) as file:
            film = file.streams.video[0]
            if bytes(film.codec_context.extradata) != header:
                raise Discard(
                    f"segment {number} was encoded by another ffmpeg than the first; "
                    "install the same version on every node and submit again"
                )
            packets = [packet for packet in file.demux(film) if packet.size]
        yield _placed(packets, piece, plan)


def _placed(packets: list[Any], piece: Piece, plan: Plan) -> list[Any]:
    """Shift the packets of one segment, in decoding order, to where the source had its frames."""
    zero = min(packet.pts for packet in packets)
    for packet in packets:
        packet.pts = piece.start + int((packet.pts - zero) * packet.time_base / plan.tick_s)
        packet.time_base = plan.tick_s
    shown = sorted(packets, key=lambda packet: packet.pts)
    ends = [*(packet.pts for packet in shown[1:]), piece.end]
    for packet, end in zip(shown, ends, strict=True):
        packet.duration = max(1, end - packet.pts)
    return packets


def _retimed(pieces: Iterator[list[Any]], plan: Plan) -> Iterator[Any]:
    """Give every packet the decoding time of rule 2, and count times from the first frame."""
    held: deque[int] | None = None
    for packets in pieces:
        shown = sorted(packet.pts for packet in packets)
        if held is None:
            step = shown[1] - shown[0] if len(shown) > 1 else packets[0].duration
            held = deque(shown[0] - step * back for back in range(REORDER, 0, -1))
        for packet, pts in zip(packets, shown, strict=True):
            held.append(pts)
            packet.dts = held.popleft() - plan.first
            packet.pts -= plan.first
            if packet.dts > packet.pts:
                raise RuntimeError("the encoder holds back more frames than H.264 with B-pyramid")
            yield packet


def _sound(source: Any, output: Any, plan: Plan) -> Iterator[Any]:
    """Yield the packets of the sound: what the encoder put first lies before time 0."""
    track = source.streams.audio[0]
    copy = output.add_stream_from_template(track)
    copy.time_base = Fraction(1, plan.audio_rate)
    frames = (packet for packet in source.demux(track) if packet.size)

    def packets() -> Iterator[Any]:
        for number, packet in enumerate(islice(frames, plan.audio_samples // AAC_FRAME + 1)):
            packet.time_base = Fraction(1, plan.audio_rate)
            packet.pts = packet.dts = (number - 1) * AAC_FRAME
            packet.duration = AAC_FRAME
            packet.stream = copy
            yield packet

    return packets()


def peak_bits_per_s(playlist: str) -> int:
    """Return the highest bit rate of a segment of a playlist of byte ranges."""
    lengths = re.findall(r"#EXTINF:([\d.]+),", playlist)
    sizes = re.findall(r"#EXT-X-BYTERANGE:(\d+)@", playlist)
    rates = (int(size) * 8 / float(s) for s, size in zip(lengths, sizes, strict=True) if float(s))
    return max(1, round(max(rates, default=0)))


def master_playlist(
    plan: Plan, variants: Sequence[tuple[Rung, Joined, Path]], bytes_of: Callable[[Path], int]
) -> str:
    """Return the playlist that offers each rendition, the best first."""
    lines = ["#EXTM3U", "#EXT-X-VERSION:7", "#EXT-X-INDEPENDENT-SEGMENTS"]
    for rung, joined, playlist in variants:
        mean = round(bytes_of(playlist.with_suffix(".m4s")) * 8 / float(plan.duration_s))
        codecs = ",".join(chain([joined.codec], ["mp4a.40.2"] if plan.audio is not None else []))
        lines += [
            f"#EXT-X-STREAM-INF:BANDWIDTH={max(mean, peak_bits_per_s(playlist.read_text()))},"
            f"AVERAGE-BANDWIDTH={mean},RESOLUTION={rung.width}x{rung.height},"
            f"FRAME-RATE={float(joined.frames / plan.duration_s):.3f},"
            f'CODECS="{codecs}"',
            playlist.name,
        ]
    return "\n".join(lines) + "\n"
