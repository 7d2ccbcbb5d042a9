"""Where a video is cut: every frame in one segment, even, at keyframes if there are any."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from jobs.library.video.plan import Plan, Rung, cuts, seek_s, segment_count, segments

FRAME_TIMES = st.lists(st.integers(0, 10_000), min_size=1, max_size=200, unique=True).map(sorted)


def a_plan(end: int, gop: int = 50) -> Plan:
    rung = Rung(name="180p", width=320, height=180, crf=23)
    return Plan(
        video=0,
        audio=None,
        audio_rate=0,
        audio_channels=0,
        tick=(1, 100),
        first=0,
        end=end,
        ladder=[rung],
        gop=gop,
        encoder="libx264",
        threads=1,
    )


@given(pts=FRAME_TIMES, data=st.data(), wanted=st.integers(1, 50), gop=st.integers(1, 60))
def test_every_frame_is_in_exactly_one_segment(
    pts: list[int], data: st.DataObject, wanted: int, gop: int
) -> None:
    keys = sorted({pts[0], *data.draw(st.lists(st.sampled_from(pts)))})

    found = list(segments(pts, keys, a_plan(pts[-1] + 1, gop), wanted=wanted, margin_s=0))

    held = [[p for p in pts if one.start <= p < one.end] for one in found]
    assert [p for frames in held for p in frames] == pts
    assert [len(frames) for frames in held] == [one.frames for one in found]
    assert [one.at for one in found] == [pts.index(one.start) for one in found]
    assert len(found) == min(wanted, len(pts))


@given(pts=FRAME_TIMES, data=st.data())
def test_a_seek_goes_to_the_last_keyframe_before_and_never_past_it(
    pts: list[int], data: st.DataObject
) -> None:
    keys = sorted({pts[0], *data.draw(st.lists(st.sampled_from(pts)))})
    wanted = data.draw(st.sampled_from(pts))
    tick_s = Fraction(1001, 30_000)

    seek = seek_s(wanted, keys, tick_s, 0)

    before = max(key for key in keys if key <= wanted)
    assert (seek is None) == (before == keys[0])
    if seek is not None:
        assert before * tick_s <= Fraction(f"{seek:.6f}") < (before + 1) * tick_s


def test_cuts_prefer_keyframes_then_the_grid_of_the_output_then_even_spacing() -> None:
    pts = list(range(400))

    assert cuts(pts, [0, 90, 210, 290], 4, gop=1000) == [0, 90, 210, 290]
    assert cuts(pts, [0, 90, 100, 210], 4, gop=50) == [0, 100, 210, 300]
    assert cuts(pts, [0], 4, gop=1000) == [0, 99, 199, 299]


def test_a_keyframe_too_far_from_even_spacing_is_left_alone() -> None:
    assert cuts(list(range(401)), [0, 10, 390], 2, gop=1000) == [0, 200]


def test_fewer_frames_than_segments_give_one_segment_a_frame() -> None:
    assert cuts([0, 40, 80], [0], 10, gop=50) == [0, 1, 2]


def test_long_videos_get_longer_segments_instead_of_more() -> None:
    assert segment_count(60, None, 1) == 6
    assert segment_count(5, None, 4) == 4
    assert segment_count(10 * 3600, None, 1) == 128
    assert segment_count(60, 2, 1) == 30


def test_the_sound_ends_within_half_a_frame_of_the_video() -> None:
    plan = a_plan(end=528).model_copy(update={"audio_rate": 48_000})

    assert plan.audio_samples % 1024 == 0
    assert abs(plan.audio_samples / 48_000 - 5.28) <= 512 / 48_000
