"""`video.transcode`: one video into several sizes (H.264, AAC), in segments that run in parallel.

    split   reads the frame times and cuts the video into segments
    run     encodes one segment into every size; the sound and the stills are chunks of their own
    join    puts the segments together without encoding, adds the sound, writes HLS

What comes out has the frames of the source, each at its own time: a variable frame rate stays, and
so do the length and the place of the sound. It stands upright, its pixels are square, and its
first frame is at time 0.

Rule 1: the parts are in `jobs/library/video/`; this file says what may be asked, and what follows
what. Rule 2: input that no retry can mend raises `Discard`. Rule 3: names in params become names of
outputs, never parts of a command.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.context import Context
from jobs.errors import InvalidInput, NotFound
from jobs.fan_out import fan_out
from jobs.library.video.plan import (
    Chunk,
    Made,
    Plan,
    Rung,
    Still,
    seek_s,
    segment_count,
    segments,
)
from jobs.outcome import Discard
from jobs.results import Results

if TYPE_CHECKING:
    from jobs.library.video.join import Joined
    from jobs.library.video.probe import Source

__all__ = ["Rendition", "TranscodeParams", "transcode"]

SOUND = "sound.m4a"
MASTER = "master.m3u8"
POSTER = "poster.jpg"

Preset = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
]


class Rendition(BaseModel):
    """One size to make."""

    model_config = ConfigDict(extra="forbid")

    height: Annotated[int, Field(ge=16, le=4320, description="Lines; the width follows")]
    crf: Annotated[
        float, Field(ge=1, le=51, description="Quality: lower is better and larger, 18 to 28 usual")
    ] = 23
    name: Annotated[
        str | None,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$", description="Else 720p and the like"),
    ] = None

    @property
    def title(self) -> str:
        """The name of its files."""
        return self.name or f"{self.height}p"


LADDER = (Rendition(height=1080), Rendition(height=720), Rendition(height=480))


class TranscodeParams(BaseModel):
    """Which video, and what to make of it."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    source: Annotated[
        str,
        Field(
            min_length=1,
            max_length=2048,
            description="upload:, output:, file:, s3://, gs:// or az://, or a path in a folder "
            "that the operator opened",
        ),
    ]
    renditions: Annotated[tuple[Rendition, ...], Field(min_length=1, max_length=8)] = LADDER
    #: Else sizes above the source's are left out, and one of its own size is made if none is left.
    upscale: bool = False
    preset: Annotated[Preset, Field(description="x264's: slower is smaller")] = "veryfast"
    encoder: Annotated[
        Literal["auto", "libx264", "nvenc"],
        Field(description="auto: the GPU's, where the split finds one that works"),
    ] = "auto"
    threads: Annotated[
        int | None,
        Field(ge=1, le=64, description="Of one segment; else the cores a full machine leaves it"),
    ] = None
    keyframe_s: Annotated[float, Field(ge=0.25, le=20, description="Between keyframes")] = 2.0
    segment_s: Annotated[
        float | None,
        Field(ge=1, le=3600, description="Else 10 s, or more where that made over 128 segments"),
    ] = None
    segments_min: Annotated[
        int, Field(ge=1, le=1000, description="Cut at least so often, frames permitting")
    ] = 1
    audio_kbps: Annotated[int, Field(ge=32, le=320)] = 128
    hls: Annotated[bool, Field(description="Also write playlists that a browser streams")] = False
    hls_segment_s: Annotated[float, Field(ge=1, le=60)] = 6.0
    thumbnails: Annotated[int, Field(ge=0, le=500, description="Evenly spaced stills")] = 0
    thumbnail_width: Annotated[int, Field(ge=16, le=1920)] = 320
    poster: Annotated[bool, Field(description="One still, as large as the largest size")] = False
    poster_at: Annotated[float, Field(ge=0, le=1, description="Where, as a share")] = 0.1

    @model_validator(mode="after")
    def _names_differ(self) -> "TranscodeParams":
        titles = [rendition.title.lower() for rendition in self.renditions]
        if len(set(titles)) < len(titles) or "master" in titles:
            raise ValueError(
                f"renditions are named {', '.join(titles)}; give each another `name`, and none "
                "`master`, which is that of the playlist of all"
            )
        return self


def split(ctx: Context, params: TranscodeParams) -> Iterator[Chunk]:
    """Read the source and yield what is to be done. The sound comes first: it runs longest."""
    from jobs.library.video.probe import probe

    source = probe(ctx, _source(ctx, params))
    wanted = segment_count(
        (source.end - source.first) * float(source.tick_s), params.segment_s, params.segments_min
    )
    plan = _plan(ctx, params, source, wanted if source.pts else 1)
    if plan.audio is not None:
        yield Chunk(kind="audio", plan=plan)
    if source.pts:
        yield from segments(source.pts, source.keys, plan, wanted=wanted, margin_s=source.margin_s)
    else:
        yield Chunk(kind="segment", plan=plan)
    stills = list(_stills(params, plan, source))
    if stills:
        yield Chunk(kind="stills", plan=plan, stills=stills)


def _source(ctx: Context, params: TranscodeParams) -> Path:
    try:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", params.source):
            path = ctx.files.fetch(params.source)
        else:
            path = ctx.files.local(params.source)
    except (NotFound, InvalidInput) as error:
        raise Discard(f"source: cannot be had ({error}); upload it, or correct it") from error
    if not path.is_file():
        raise Discard(f"source: there is no file at {params.source!r}; upload it, or correct it")
    return path.resolve()


def _made(ctx: Context) -> Path:
    """Return the folder for what is made: what is fetched may have the same names."""
    folder = ctx.files.workdir / "made"
    folder.mkdir(exist_ok=True)
    return folder


def _plan(ctx: Context, params: TranscodeParams, source: "Source", wanted: int) -> Plan:
    cores = os.cpu_count() or 1
    return Plan(
        video=source.video,
        audio=source.audio,
        audio_rate=source.audio_rate,
        audio_channels=source.audio_channels,
        tick=source.tick_s.as_integer_ratio(),
        first=source.first,
        end=source.end,
        ladder=_ladder(params, source),
        gop=max(1, round(source.rate * params.keyframe_s)),
        encoder=_encoder(ctx, params),
        # A machine runs as many segments as it has cores; one thread each then beats many.
        threads=params.threads or max(1, cores // wanted),
    )


def _ladder(params: TranscodeParams, source: "Source") -> list[Rung]:
    fitting = [r for r in params.renditions if params.upscale or r.height <= source.height]
    if not fitting:
        least = min(params.renditions, key=lambda rendition: rendition.height)
        fitting = [Rendition(height=max(16, source.height), crf=least.crf)]
    return [
        Rung(
            name=rendition.title,
            width=_even(source.width * (rendition.height // 2 * 2) / source.height),
            height=rendition.height // 2 * 2,
            crf=rendition.crf,
        )
        for rendition in sorted(fitting, key=lambda r: -r.height)
    ]


def _even(length: float) -> int:
    return max(2, 2 * round(length / 2))


def _encoder(ctx: Context, params: TranscodeParams) -> Literal["libx264", "h264_nvenc"]:
    from jobs.library.video.ffmpeg import NO_GPU, nvenc_trouble

    if params.encoder == "libx264":
        return "libx264"
    trouble = nvenc_trouble()
    if not trouble:
        return "h264_nvenc"
    if params.encoder == "nvenc":
        raise Discard(
            f"encoder: nvenc does not work on this worker ({trouble}); leave it at auto, or use "
            "the queue of a machine whose GPU encodes"
        )
    if trouble != NO_GPU:
        ctx.log(f"libx264 encodes: this worker's GPU does not ({trouble})")
    return "libx264"


def _stills(params: TranscodeParams, plan: Plan, source: "Source") -> Iterator[Still]:
    """Yield the poster and the thumbnails, each in the middle of its share of the frames."""
    times = source.pts or [source.first]

    def at(share: float, name: str, width: int, height: int) -> Still:
        pts = times[min(len(times) - 1, int(share * len(times)))]
        seek = seek_s(pts, source.keys, plan.tick_s, source.margin_s) if source.pts else None
        return Still(name=name, pts=pts, seek=seek, width=width, height=height)

    best = plan.ladder[0]
    if params.poster:
        yield at(params.poster_at, POSTER, best.width, best.height)
    height = _even(params.thumbnail_width * best.height / best.width)
    for number in range(params.thumbnails):
        share = (number + 0.5) / params.thumbnails
        name = f"thumbnail_{number + 1:03}.jpg"
        yield at(share, name, _even(params.thumbnail_width), height)


def join(ctx: Context, params: TranscodeParams, results: Results[Made]) -> dict[str, Any]:
    """Put the segments together and keep the outputs."""
    parts = list(results)
    films = [part for part in parts if part.value.chunk.kind == "segment"]
    sounds = [part.files[SOUND] for part in parts if part.value.chunk.kind == "audio"]
    plan = films[0].value.chunk.plan
    sound = ctx.files.fetch(sounds[0]) if sounds else None
    made = []
    for number, rung in enumerate(plan.ladder):
        files = [(part.value.chunk, part.files[f"{rung.name}.mp4"]) for part in films]
        made.append(_rendition(ctx, params, rung, files, sound, number / len(plan.ladder)))
    stills = _kept_stills(ctx, [part.files for part in parts if part.value.chunk.stills])
    answer: dict[str, Any] = {
        "duration_s": round(float(plan.duration_s), 6),
        "segments": len(films),
        "encoder": plan.encoder,
        "renditions": [facts for facts, _ in made],
        "audio": None,
        "poster": POSTER if POSTER in stills else None,
        "thumbnails": [name for name in stills if name != POSTER],
    }
    if sound is not None:
        answer["audio"] = {
            "codec": "aac",
            "rate_hz": plan.audio_rate,
            "channels": plan.audio_channels,
            "duration_s": round(plan.audio_samples / plan.audio_rate, 6),
        }
    if params.hls:
        answer["hls"] = _hls(ctx, plan, [joined for _, joined in made])
    ctx.progress(1.0, f"{len(made)} renditions are ready")
    return answer


def _rendition(
    ctx: Context,
    params: TranscodeParams,
    rung: Rung,
    files: list[tuple[Chunk, str]],
    sound: Path | None,
    done: float,
) -> tuple[dict[str, Any], "Joined"]:
    from jobs.library.video import ffmpeg
    from jobs.library.video.join import Piece, join

    plan = files[0][0].plan
    pieces = []
    for chunk, uri in files:
        ctx.check()
        start = plan.first if chunk.start is None else chunk.start
        end = plan.end if chunk.end is None else chunk.end
        pieces.append(Piece(ctx.files.fetch(uri), start, end))
    share = 1 / len(plan.ladder) / len(files)
    path = _made(ctx) / f"{rung.name}.mp4"
    joined = join(
        plan,
        pieces,
        sound,
        path,
        lambda number: ctx.progress(done + number * share, f"Joining {rung.name}"),
    )
    ctx.files.save(path)
    facts = {
        "name": rung.name,
        "file": path.name,
        "width": rung.width,
        "height": rung.height,
        "frames": joined.frames,
        "duration_s": round(float(plan.duration_s), 6),
        "bytes": path.stat().st_size,
    }
    if params.hls:
        ffmpeg.run(ctx, ffmpeg.hls(path, params.hls_segment_s), "Writing HLS", lambda _: done)
        for suffix in (".m3u8", ".m4s"):
            ctx.files.save(path.with_suffix(suffix))
        facts["playlist"] = path.with_suffix(".m3u8").name
    return facts, joined


def _hls(ctx: Context, plan: Plan, joined: "list[Joined]") -> dict[str, Any]:
    from jobs.library.video.join import master_playlist

    variants = [
        (rung, one, _made(ctx) / f"{rung.name}.m3u8")
        for rung, one in zip(plan.ladder, joined, strict=True)
    ]
    text = master_playlist(plan, variants, lambda path: path.stat().st_size)
    ctx.files.write(MASTER, text.encode())
    return {"playlist": MASTER, "variants": [path.name for _, _, path in variants]}


def _kept_stills(ctx: Context, found: list[Any]) -> list[str]:
    """Keep the stills as outputs of the job, beside its videos."""
    names = []
    for files in found:
        for name, uri in sorted(files.items()):
            ctx.files.save(ctx.files.fetch(uri), name)
            names.append(name)
    return names


@fan_out("video.transcode", split=split, join=join, timeout_s=4 * 3600)
def transcode(ctx: Context, params: TranscodeParams, chunk: Chunk) -> Made:
    """Transcode a video into several sizes, in parallel: MP4 files, HLS, stills."""
    source = _source(ctx, params)
    if chunk.kind == "segment":
        return _segment(ctx, params, chunk, source)
    if chunk.kind == "audio":
        return _audio(ctx, params, chunk, source)
    return _pictures(ctx, chunk, source)


def _segment(ctx: Context, params: TranscodeParams, chunk: Chunk, source: Path) -> Made:
    from jobs.library.video import ffmpeg

    folder, plan = _made(ctx), chunk.plan
    expected = chunk.frames or max(1, float(plan.duration_s) * plan.gop / params.keyframe_s)

    def encode(chunk: Chunk) -> int:
        command = ffmpeg.segment(source, chunk, folder, params.preset)
        told = ffmpeg.run(ctx, command, "Encoding", lambda t: _count(t) / expected)
        return _count(told)

    frames = encode(chunk)
    if chunk.frames is not None and frames != chunk.frames and chunk.seek is not None:
        # The seek landed elsewhere than the file's index said. From the start, nothing can.
        ctx.log(f"{frames} of {chunk.frames} frames after a seek; decoding from the start")
        frames = encode(chunk.model_copy(update={"seek": None}))
    if frames == 0:
        raise Discard("source: a whole segment of it cannot be decoded; the file is damaged")
    if chunk.frames not in {None, frames}:
        ctx.log(f"{frames} of {chunk.frames} frames can be decoded; the source is damaged there")
    for rung in plan.ladder:
        ctx.files.save(folder / f"{rung.name}.mp4")
    ctx.progress(1.0, "Encoded")
    return Made(chunk=chunk, frames=frames)


def _count(told: dict[str, str]) -> int:
    return int(told.get("frame", "0"))


def _audio(ctx: Context, params: TranscodeParams, chunk: Chunk, source: Path) -> Made:
    from jobs.library.video import ffmpeg

    target = _made(ctx) / SOUND
    whole = float(chunk.plan.duration_s) * 1e6

    def share(told: dict[str, str]) -> float:
        done = told.get("out_time_us", "N/A")
        return 0.0 if done == "N/A" else int(done) / whole

    ffmpeg.run(
        ctx, ffmpeg.audio(source, chunk.plan, target, params.audio_kbps), "Encoding sound", share
    )
    ctx.files.save(target)
    return Made(chunk=chunk)


def _pictures(ctx: Context, chunk: Chunk, source: Path) -> Made:
    from jobs.library.video import ffmpeg

    for number, wanted in enumerate(chunk.stills):
        target = _made(ctx) / wanted.name
        for seek in dict.fromkeys((wanted.seek, None)):
            tried = wanted.model_copy(update={"seek": seek})
            ffmpeg.run(ctx, ffmpeg.still(source, chunk.plan, tried, target), "", lambda _: 0.0)
            if target.exists():
                ctx.files.save(target)
                break
        ctx.progress((number + 1) / len(chunk.stills), "Taking stills")
    return Made(chunk=chunk)
