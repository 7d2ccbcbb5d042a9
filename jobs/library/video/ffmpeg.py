"""The commands, and running one so that it never outlives its attempt.

Rule 1: one process decodes a segment once and encodes all of its renditions. Rule 2: times pass
through as they are (`-copyts`, the source's own ticks), so a variable frame rate stays exact.
Rule 3: a command opens files only; its paths are absolute and carry `file:`, so no name is taken
for an option or a protocol. Rule 4: whatever ends the handler ends ffmpeg, its death included.
"""

import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

from jobs.context import Context
from jobs.library.video import READ_ONLY_FILES, needs_video
from jobs.library.video.plan import Chunk, Plan, Rung, Still

__all__ = ["NO_GPU", "audio", "executable", "hls", "nvenc_trouble", "run", "segment", "still"]

#: How soon a stop is noticed, and how long ffmpeg has to end by itself.
LOOK_S = 0.1
END_S = 1.0
TOLD_BYTES = 2_000
#: A driver that is broken may hang.
TRIAL_S = 30
DEVICES, NO_GPU = Path("/dev"), "no NVIDIA GPU"
#: Headers of x264 do not depend on the content then, so segments share them.
X264 = "stitchable=1:scenecut=0:open-gop=0"
#: x264 spends less on frames that nothing refers to, and takes those at the end of a segment for
#: such; at its start it does not know yet what came before. So many frames at a seam get so many
#: times the bits, which is what one long encode gives them (measured: SSIM falls by 0.008 before a
#: seam and by 0.005 after it without, by less than 0.005 in the worst frame with it).
TAIL_FRAMES, TAIL_BITS = 6, 1.5
HEAD_FRAMES, HEAD_BITS = 3, 1.15


@cache
def executable() -> str:
    """Return the path of the ffmpeg that the `video` extra brings."""
    with needs_video():
        import imageio_ffmpeg
    return str(imageio_ffmpeg.get_ffmpeg_exe())


def segment(source: Path, chunk: Chunk, folder: Path, preset: str) -> list[str]:
    """Return the command that encodes a segment into every rendition: `folder/<name>.mp4`."""
    ffmpeg, plan = _library(), chunk.plan
    # No bound at either end of the video: what decodes there is in it, whatever the packets told.
    start = chunk.start if chunk.at else None
    end = chunk.end if chunk.end != plan.end else None
    frames = _frames(ffmpeg, source, plan, start, end, chunk.seek)
    split = frames.filter_multi_output("split", len(plan.ladder))
    outputs = [
        ffmpeg.output(
            _scaled(split[at], rung, "yuv420p"),
            f"file:{folder / rung.name}.mp4",
            f="mp4",
            # Without frame times of the file, ffmpeg makes them, and may make two alike.
            fps_mode="vfr" if chunk.frames is None else "passthrough",
            enc_time_base="{}/{}".format(*plan.tick),
            video_track_timescale=plan.tick[1],
            avoid_negative_ts="make_zero",
            map_metadata=-1,
            # On one grid over the whole source, so that all segments of HLS are of one length.
            force_key_frames=f"expr:eq(mod(n+{chunk.at},{plan.gop}),0)",
            **_codec(chunk, rung, preset),
        )
        for at, rung in enumerate(plan.ladder)
    ]
    return _command(ffmpeg.merge_outputs(*outputs), plan.threads)


def _codec(chunk: Chunk, rung: Rung, preset: str) -> dict[str, Any]:
    plan = chunk.plan
    common = {"c:v": plan.encoder, "profile:v": "high", "g": plan.gop}
    if plan.encoder == "h264_nvenc":
        quality = {"rc": "vbr", "cq": rung.crf, "b:v": 0}
        return {**common, "preset": "p4", **quality, "forced-idr": 1, "no-scenecut": 1}
    zones = [f"0,{HEAD_FRAMES - 1},b={HEAD_BITS}"] if chunk.at else []
    if chunk.frames is not None and chunk.end != plan.end:
        zones.append(f"{max(0, chunk.frames - TAIL_FRAMES)},{chunk.frames - 1},b={TAIL_BITS}")
    details = f"{X264}:zones={'/'.join(zones)}" if zones else X264
    return {
        **common,
        "preset": preset,
        "crf": rung.crf,
        "threads": plan.threads,
        "x264-params": details,
    }


def still(source: Path, plan: Plan, wanted: Still, target: Path) -> list[str]:
    """Return the command that writes one frame as a JPEG."""
    ffmpeg = _library()
    frames = _frames(ffmpeg, source, plan, wanted.pts, None, wanted.seek)
    rung = Rung(name="", width=wanted.width, height=wanted.height, crf=0)
    output = ffmpeg.output(
        _scaled(frames, rung, "yuvj420p"),
        f"file:{target}",
        f="image2",
        update=1,
        **{"frames:v": 1, "c:v": "mjpeg", "q:v": 3},
    )
    return _command(output, plan.threads)


def audio(source: Path, plan: Plan, target: Path, kbps: int) -> list[str]:
    """Return the command that encodes the sound once, exactly as long as the video.

    It is cut where the video starts and ends, and silence fills what it lacks: a player that
    streams would otherwise wait for sound that never comes.
    """
    ffmpeg = _library()
    first = round(plan.first * plan.tick_s * plan.audio_rate)
    sound = (
        _opened(ffmpeg, source, plan)[str(plan.audio)]
        .filter("aresample", plan.audio_rate, **{"async": 1, "first_pts": first})
        .filter("apad")
        .filter("atrim", end_sample=plan.audio_samples)
        .filter("asetpts", "N/SR/TB")
    )
    output = ffmpeg.output(
        sound,
        f"file:{target}",
        f="mp4",
        map_metadata=-1,
        ac=plan.audio_channels,
        ar=plan.audio_rate,
        **{"c:a": "aac", "b:a": f"{kbps}k"},
    )
    return _command(output, 1)


def hls(rendition: Path, segment_s: float) -> list[str]:
    """Return the command that repacks a rendition as HLS beside it, without encoding.

    One file of fragments and a playlist of byte ranges: an hour is two files, not six hundred.
    """
    ffmpeg = _library()
    output = ffmpeg.output(
        ffmpeg.input(f"file:{rendition}", **READ_ONLY_FILES),
        f"file:{rendition.with_suffix('.m3u8')}",
        f="hls",
        c="copy",
        hls_time=segment_s,
        hls_playlist_type="vod",
        hls_segment_type="fmp4",
        hls_flags="single_file+independent_segments",
        hls_segment_filename=f"{rendition.with_suffix('.m4s')}",
    )
    return _command(output, 1)


def nvenc_trouble() -> str:
    """Return why this machine cannot encode H.264 on its GPU, "" if it can.

    By trying, as not every GPU has the part: those made for computing, such as H100, have none.
    """
    if not any(DEVICES.glob("nvidia[0-9]*")):
        return NO_GPU
    ffmpeg = _library()
    black = ffmpeg.input("color=black:s=256x256", f="lavfi")
    output = ffmpeg.output(black, "-", f="null", **{"c:v": "h264_nvenc", "frames:v": 1})
    try:
        tried = subprocess.run(
            [executable(), "-nostdin", "-v", "error", *output.get_args()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TRIAL_S,
            check=False,
            preexec_fn=_dies_with(os.getpid()),
        )
    except subprocess.TimeoutExpired:
        return f"it did not answer in {TRIAL_S} s"
    if tried.returncode == 0:
        return ""
    first = tried.stderr.decode(errors="replace").strip().partition("\n")[0]
    return re.sub(r"^\[.*? @ \w+\] ", "", first)[:200] or f"ffmpeg ended with {tried.returncode}"


def _library() -> Any:
    with needs_video():
        import ffmpeg
    return ffmpeg


def _opened(ffmpeg: Any, source: Path, plan: Plan, seek: float | None = None) -> Any:
    where = {} if seek is None else {"seek_timestamp": 1, "ss": f"{seek:.6f}"}
    # What the seek brings too much is cut by `trim`, in ticks; ffmpeg's own cut is in microseconds.
    return ffmpeg.input(
        f"file:{source}",
        threads=plan.threads,
        noaccurate_seek=None,
        copyts=None,
        **READ_ONLY_FILES,
        **where,
    )


def _frames(
    ffmpeg: Any, source: Path, plan: Plan, start: int | None, end: int | None, seek: float | None
) -> Any:
    frames = _opened(ffmpeg, source, plan, seek)[str(plan.video)]
    bounds = {"start_pts": start, "end_pts": end}
    found = {name: value for name, value in bounds.items() if value is not None}
    return frames.filter("trim", **found) if found else frames


def _scaled(frames: Any, rung: Rung, pixels: str) -> Any:
    return (
        frames.filter("scale", rung.width, rung.height).filter("setsar", 1).filter("format", pixels)
    )


def _command(outputs: Any, threads: int) -> list[str]:
    told = ("-v", "error", "-nostdin", "-progress", "pipe:1", "-stats_period", "0.25")
    limits = ("-filter_complex_threads", str(threads))
    command: list[str] = outputs.global_args(*told, *limits).compile(
        cmd=executable(), overwrite_output=True
    )
    return command


def run(
    ctx: Context, command: list[str], message: str, share: Callable[[dict[str, str]], float]
) -> dict[str, str]:
    """Run ffmpeg and return the last of what it told of itself (`frame`, `out_time_us`, ...).

    `share` makes a fraction of what it tells, for the progress shown. Raises StopRequested with
    ffmpeg ended, RuntimeError with ffmpeg's own words if it failed.
    """
    told: dict[str, str] = {}
    with tempfile.TemporaryFile(dir=ctx.files.workdir) as words:
        with _started(command, words) as process:
            for lines in _output(process):
                ctx.check()
                told.update(line.partition("=")[::2] for line in lines if "=" in line)
                # A short one is over before it tells of itself on the way: `progress=end` alone.
                if any(line.startswith("progress=") for line in lines):
                    ctx.progress(share(told), message)
        if process.returncode != 0:
            words.seek(max(0, words.seek(0, os.SEEK_END) - TOLD_BYTES))
            last = words.read().decode(errors="replace").strip()
            raise RuntimeError(f"ffmpeg ended with {process.returncode}: {last or 'no word'}")
    return told


@contextmanager
def _started(command: list[str], words: IO[bytes]) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=words,
        preexec_fn=_dies_with(os.getpid()),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def _output(process: "subprocess.Popen[bytes]") -> Iterator[list[str]]:
    """Yield the lines that came since the last look, also when there are none."""
    assert process.stdout is not None
    rest = ""
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdout, selectors.EVENT_READ)
        while True:
            data = None
            if ready.select(LOOK_S):
                data = os.read(process.stdout.fileno(), 1 << 16)
            *lines, rest = (rest + (data or b"").decode(errors="replace")).split("\n")
            yield [line.strip() for line in lines]
            if data == b"":
                break
    while process.poll() is None:
        try:
            process.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            yield []


def _dies_with(parent: int) -> Callable[[], None] | None:
    """Return what makes a forked process die with the process `parent`, even if that is killed."""
    if sys.platform != "linux":
        return None  # macOS knows no such thing: there, the sweep of the worker's keeper ends it.
    import ctypes

    prctl = ctypes.CDLL(None, use_errno=True).prctl  # Loaded before the fork: after, locks may hang
    ask_for_death_signal = 1

    def ask() -> None:
        prctl(ask_for_death_signal, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # It died before the signal was asked for.

    return ask
