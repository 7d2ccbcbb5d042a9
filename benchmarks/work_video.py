"""A minute of 1080p film into three sizes: by Drayman in segments, and by one ffmpeg command.

Both encode with the same preset, quality and keyframes, and with as many threads in all as there
are cores. The film is a real clip, looped and scaled once. What it doesn't show: GPUs, and several
machines, which is what segments are for.
"""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import imageio_ffmpeg

from benchmarks.asking import Measured
from benchmarks.server import Server
from service.demo import film_path

__all__ = ["SECONDS", "make_film", "measured"]

SECONDS, QUICK_SECONDS = 60, 6
HEIGHTS = {1080: 1920, 720: 1280, 480: 854}
PRESET, CRF, KEYFRAME_S, RATE = "veryfast", 23, 2, 25


def make_film(folder: Path, seconds: int) -> Path:
    """Write the film that is transcoded."""
    path = folder / "film.mp4"
    _ffmpeg(
        *("-stream_loop", "-1", "-i", str(film_path()), "-t", str(seconds)),
        *("-vf", "scale=1920:1080", "-c:v", "libx264", "-preset", "veryfast", "-crf", "18"),
        *("-g", str(KEYFRAME_S * RATE), "-keyint_min", str(KEYFRAME_S * RATE)),
        *("-sc_threshold", "0", "-c:a", "aac", str(path)),
    )
    return path


def measured(server: Server, film: Path) -> Measured:
    """Transcode it both ways."""
    plain_s = _by_ffmpeg(film)
    drayman_s = _by_drayman(server, film)
    return {
        ("video.transcode, through Drayman", "s"): drayman_s,
        ("video.transcode, one ffmpeg command", "s"): plain_s,
        ("video.transcode, Drayman beside ffmpeg", "%"): 100 * drayman_s / plain_s,
    }


def _by_ffmpeg(film: Path) -> float:
    sizes = ";".join(f"[in{n}]scale={w}:{h}[v{n}]" for n, (h, w) in enumerate(HEIGHTS.items()))
    inputs = "".join(f"[in{n}]" for n in range(len(HEIGHTS)))
    arguments = ["-i", str(film), "-filter_complex", f"[0:v]split={len(HEIGHTS)}{inputs};{sizes}"]
    for n, height in enumerate(HEIGHTS):
        arguments += ["-map", f"[v{n}]", "-map", "0:a", "-c:v", "libx264", "-preset", PRESET]
        arguments += ["-crf", str(CRF), "-g", str(KEYFRAME_S * RATE), "-sc_threshold", "0"]
        arguments += ["-threads", str(os.cpu_count()), "-c:a", "aac", "-b:a", "128k"]
        arguments += ["-movflags", "+faststart", str(film.with_name(f"plain-{height}.mp4"))]
    began = time.perf_counter()
    _ffmpeg(*arguments)
    return time.perf_counter() - began


def _by_drayman(server: Server, film: Path) -> float:
    params: dict[str, Any] = {
        "source": str(film),
        "renditions": [{"height": height, "crf": CRF} for height in HEIGHTS],
        "preset": PRESET,
        "keyframe_s": KEYFRAME_S,
        "encoder": "libx264",
    }
    began = time.perf_counter()
    with server.api() as api:
        job = api.wait(api.submit("video.transcode", params)["id"])
    assert job["status"] == "completed", job
    return time.perf_counter() - began


def _ffmpeg(*arguments: str) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-y", "-loglevel", "error", *arguments]
    subprocess.run(command, check=True)
