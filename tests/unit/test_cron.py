"""Cron lines: what they mean, what both days of a change of clocks do, and what is refused."""

import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import cron
from cluster.cron import check_cron, jitter_of, next_tick, ticks
from jobs.errors import InvalidInput

BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"
DAY_S = 86_400.0
#: Where clocks jump: by an hour, by half of one, at midnight, in autumn, by a whole day.
CHANGES = [
    (BERLIN, datetime(2026, 3, 29, 1, tzinfo=UTC)),
    (BERLIN, datetime(2026, 10, 25, 1, tzinfo=UTC)),
    (NEW_YORK, datetime(2026, 3, 8, 7, tzinfo=UTC)),
    (NEW_YORK, datetime(2026, 11, 1, 6, tzinfo=UTC)),
    (LORD_HOWE, datetime(2026, 10, 3, 15, 30, tzinfo=UTC)),
    (LORD_HOWE, datetime(2026, 4, 4, 15, tzinfo=UTC)),
    ("Africa/Cairo", datetime(2026, 4, 23, 22, tzinfo=UTC)),
    ("America/Havana", datetime(2026, 11, 1, 5, tzinfo=UTC)),
    ("Pacific/Apia", datetime(2011, 12, 30, 10, tzinfo=UTC)),
    ("UTC", datetime(2026, 3, 29, 1, tzinfo=UTC)),
]


def at(text: str, zone: str = "UTC") -> float:
    """A moment; of one that clocks show twice the first."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def day(line: str, zone: str, date: str, hours: int = 24) -> list[str]:
    """What a clock shows at the ticks of a day, and its offset from UTC."""
    first = at(date, zone)
    found = ticks(line, zone, first - 1, first + hours * 3600, 10_000)
    return [datetime.fromtimestamp(t, ZoneInfo(zone)).strftime("%d %H:%M %z") for t in found]


# --- the day clocks are set forward -------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "date", "line", "shown"),
    [
        (BERLIN, "2026-03-29", "30 2 * * *", "29 03:00 +0200"),
        (NEW_YORK, "2026-03-08", "30 2 * * *", "08 03:00 -0400"),
        (LORD_HOWE, "2026-10-04", "15 2 * * *", "04 02:30 +1100"),
        (BERLIN, "2026-03-29", "15 30 2 * * *", "29 03:00 +0200"),
        (BERLIN, "2026-03-29", "0,15,30 2 * * *", "29 03:00 +0200"),
        (BERLIN, "2026-03-29", "30 2,3 * * *", "29 03:00 +0200, 29 03:30 +0200"),
        (BERLIN, "2026-03-29", "0 2,3 * * *", "29 03:00 +0200"),
        ("UTC", "2026-03-29", "30 2 * * *", "29 02:30 +0000"),
    ],
)
def test_a_fixed_time_that_does_not_come_is_made_up_for_when_the_clock_is_set_forward(
    zone: str, date: str, line: str, shown: str
) -> None:
    assert day(line, zone, date, hours=22) == shown.split(", ")


def test_an_hourly_line_goes_on_each_hour_where_one_is_skipped() -> None:
    shown = ["29 00:00 +0100", "29 01:00 +0100", "29 03:00 +0200", "29 04:00 +0200"]
    assert day("0 * * * *", BERLIN, "2026-03-29", 3) == shown
    assert len(day("0 * * * *", BERLIN, "2026-03-29", 22)) == 23
    assert day("0 * * * *", NEW_YORK, "2026-03-08", 2)[-1] == "08 03:00 -0400"
    # Half an hour is skipped, from 02:00 on: no clock shows that.
    shown = ["04 01:00 +1030", "04 03:00 +1100", "04 04:00 +1100"]
    assert day("0 * * * *", LORD_HOWE, "2026-10-04", 4)[1:] == shown


def test_each_minute_of_real_time_has_its_tick_where_an_hour_is_skipped() -> None:
    for zone, date in [
        (BERLIN, "2026-03-29"),
        (NEW_YORK, "2026-03-08"),
        (LORD_HOWE, "2026-10-04"),
        ("UTC", "2026-03-29"),
    ]:
        first = at(date, zone)
        found = ticks("* * * * *", zone, first, first + 6 * 3600, 1000)
        assert found == [first + 60 * n for n in range(1, 361)]


def test_a_line_with_a_star_has_no_tick_in_what_is_skipped() -> None:
    assert day("*/20 2 * * *", BERLIN, "2026-03-29", 22) == []
    assert day("30 */2 * * *", BERLIN, "2026-03-29", 4) == ["29 00:30 +0100", "29 04:30 +0200"]


def test_after_a_change_of_half_an_hour_lines_keep_to_the_clock() -> None:
    shown = ["04 05:00 +1100", "04 05:20 +1100", "04 05:40 +1100"]
    assert day("*/20 5 * * *", LORD_HOWE, "2026-10-04") == shown
    shown = [text.replace("04 ", "05 ").replace("+1100", "+1030") for text in shown]
    assert day("*/20 5 * * *", LORD_HOWE, "2026-04-05") == shown


# --- the day clocks are set back ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "date", "line", "shown"),
    [
        (BERLIN, "2026-10-25", "30 2 * * *", "25 02:30 +0200"),
        (NEW_YORK, "2026-11-01", "30 1 * * *", "01 01:30 -0400"),
        (LORD_HOWE, "2026-04-05", "45 1 * * *", "05 01:45 +1100"),
        (BERLIN, "2026-10-25", "15 30 2 * * *", "25 02:30 +0200"),
        ("UTC", "2026-10-25", "30 2 * * *", "25 02:30 +0000"),
    ],
)
def test_a_fixed_time_that_comes_twice_fires_the_first_time(
    zone: str, date: str, line: str, shown: str
) -> None:
    assert day(line, zone, date) == [shown]


def test_an_hourly_line_has_both_of_an_hour_that_comes_twice() -> None:
    shown = ["25 01:00 +0200", "25 02:00 +0200", "25 02:00 +0100", "25 03:00 +0100"]
    assert day("0 * * * *", BERLIN, "2026-10-25", 4)[1:] == shown
    assert len(day("0 * * * *", BERLIN, "2026-10-25", 24)) == 25
    shown = ["01 01:00 -0400", "01 01:00 -0500", "01 02:00 -0500"]
    assert day("0 * * * *", NEW_YORK, "2026-11-01", 3)[1:] == shown
    # At 02:00 it is 01:30 again: no clock shows 01:00 twice.
    shown = ["05 01:00 +1100", "05 02:00 +1030", "05 03:00 +1030"]
    assert day("0 * * * *", LORD_HOWE, "2026-04-05", 4)[1:4] == shown


def test_each_minute_of_real_time_has_its_tick_where_an_hour_comes_twice() -> None:
    for zone, date in [(BERLIN, "2026-10-25"), (NEW_YORK, "2026-11-01"), (LORD_HOWE, "2026-04-05")]:
        first = at(date, zone)
        found = ticks("* * * * *", zone, first, first + 6 * 3600, 1000)
        assert found == [first + 60 * n for n in range(1, 361)]


def test_a_line_with_a_star_has_what_comes_twice_twice_and_in_order() -> None:
    shown = ["25 02:00 +0200", "25 02:30 +0200", "25 02:00 +0100", "25 02:30 +0100"]
    assert day("*/30 2 * * *", BERLIN, "2026-10-25") == shown


def test_ticks_that_all_come_twice_are_in_order_over_the_years() -> None:
    found = ticks("*/30 2 * 10 7L", BERLIN, at("2026-01-01"), at("2028-12-31"), 100)

    assert found == sorted(found)
    assert len(found) == 3 * 4


# --- what lines mean ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "after", "tick"),
    [
        ("0 0 29 2 *", "2026-01-01", "2028-02-29"),
        ("0 0 29 2 *", "2096-02-29", "2104-02-29"),
        ("0 0 L * *", "2028-02-01", "2028-02-29"),
        ("0 0 LW * *", "2026-05-01", "2026-05-29"),
        ("0 9 * * 5L", "2026-05-01", "2026-05-29T09:00"),
        ("0 9 * * FRI#2", "2026-05-01", "2026-05-08T09:00"),
        ("0 9 * feb mon-fri", "2026-01-01", "2026-02-02T09:00"),
        ("0 0 * * 7", "2026-05-01", "2026-05-03"),
        # Both days are named: either will do. One begins with a star: both must fit.
        ("0 0 13 * FRI", "2026-05-01T12:00", "2026-05-08"),
        ("0 0 */2 * FRI", "2026-05-01T12:00", "2026-05-15"),
        ("*/15 * * * *", "2026-05-01T12:00", "2026-05-01T12:15"),
        ("5/20 * * * *", "2026-05-01T12:00", "2026-05-01T12:05"),
        ("30 0 12 * * *", "2026-05-01T12:00", "2026-05-01T12:00:30"),
        ("*/10 * * * * *", "2026-05-01T12:00:01", "2026-05-01T12:00:10"),
        ("* * * * * *", "2026-05-01T12:00:00.25", "2026-05-01T12:00:01"),
        ("@hourly", "2026-05-01T12:00", "2026-05-01T13:00"),
        ("@daily", "2026-05-01T12:00", "2026-05-02"),
        (" @Weekly ", "2026-05-01T12:00", "2026-05-03"),
        ("@monthly", "2026-05-01T12:00", "2026-06-01"),
        ("@yearly", "2026-05-01T12:00", "2027-01-01"),
    ],
)
def test_the_next_tick_is_what_the_line_says(line: str, after: str, tick: str) -> None:
    check_cron(line, "UTC")

    assert next_tick(line, "UTC", at(after)) == at(tick)


def test_the_next_tick_is_after_the_moment_and_not_at_it() -> None:
    noon = at("2026-05-01T12:00")

    assert next_tick("0 12 * * *", "UTC", noon) == noon + DAY_S
    assert next_tick("0 12 * * *", "UTC", noon - 0.001) == noon


def test_a_day_is_that_of_the_time_zone() -> None:
    assert next_tick("0 0 * * *", "Asia/Kolkata", at("2026-05-01")) == at("2026-05-01T18:30")


def test_ticks_stop_at_the_limit_and_include_the_last_moment() -> None:
    first = at("2026-05-01")

    assert ticks("* * * * *", "UTC", first, first + 120, 10) == [first + 60, first + 120]
    assert ticks("* * * * *", "UTC", first, first + 1e9, 1) == [first + 60]
    assert ticks("* * * * *", "UTC", first, first + 59, 10) == []
    assert ticks("* * * * *", "UTC", first, first - 60, 10) == []


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "has 0 fields; write five"),
        ("* * * *", "has 4 fields"),
        ("* * * * * * 2027", "has 7 fields"),
        ("often", "has 1 fields"),
        ("61 * * * *", "minute '61' is not right; write 0-59"),
        ("* 24 * * *", "hour '24'"),
        ("* * 0 * *", "day-of-month '0'"),
        ("* * * 13 *", "month '13'"),
        ("* * * * 8", "day-of-week '8'"),
        ("60 * * * * *", "second '60'"),
        ("-1 * * * *", "minute '-1'"),
        ("1.5 * * * *", "minute '1.5'"),
        ("*/0 * * * *", "minute '*/0'"),
        ("30-10 * * * *", "minute '30-10'"),
        ("* * * * SAT-SUN", "day-of-week 'SAT-SUN'"),
        ("* * * * MON#6", "day-of-week 'MON#6'"),
        ("0 0 15W * *", "day-of-month '15W'"),
        ("0 0 ? * *", "day-of-month '?'"),
        ("H * * * *", "minute 'H'"),
        ("R * * * *", "minute 'R'"),
        ("\N{ARABIC-INDIC DIGIT THREE} * * * *", "minute"),
        ("\0 * * * *", "minute"),
        ("*/90 * * * *", "a step of 90 is longer than the field, 60"),
        ("0 */48 * * *", "a step of 48 is longer than the field, 24"),
        ("@reboot", "there is no '@reboot'; there is @yearly"),
        ("@every 5m", "there is no '@every 5m'"),
        ("*" * 501, "has 501 characters"),
        ("0 0 30 2 *", "never fires: no such month has a day 30"),
        ("0 0 31 4,6,9,11 *", "never fires: no such month has a day 31"),
        ("* * */20 * 1L", "never fires: no day matches"),
    ],
)
def test_a_line_that_is_none_or_never_fires_is_refused_with_the_reason(
    line: str, told: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_cron(line, "UTC")

    assert refused.value.field == "cron"
    assert told in refused.value.reason


@pytest.mark.parametrize(
    "zone",
    [
        "",
        "Mars/Olympus",
        "europe/berlin",
        "Europe",
        "Europe/",
        "+02:00",
        "../../../etc/passwd",
        "/etc/localtime",
        "localtime",
        "right/UTC",
        "posixrules",
        "tzdata.zi",
        "UTC\0",
        "X" * 5_000,
    ],
)
def test_a_time_zone_that_is_none_is_refused(zone: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_cron("* * * * *", zone)

    assert refused.value.field == "timezone"


def test_what_was_never_checked_is_refused_when_it_is_asked_for_ticks() -> None:
    with pytest.raises(InvalidInput, match="cron: minute '61'"):
        next_tick("61 * * * *", "UTC", 0.0)
    with pytest.raises(InvalidInput, match="timezone"):
        ticks("* * * * *", "Mars/Olympus", 0.0, 1.0, 1)


def test_a_line_without_another_tick_gives_none() -> None:
    assert next_tick("* * */20 * 1L", "UTC", at("2026-01-01")) is None
    assert ticks("* * */20 * 1L", BERLIN, at("2026-01-01"), at("2096-01-01"), 3) == []


def test_ticks_end_with_the_calendar() -> None:
    found = ticks("0 0 * 2 MON#5", BERLIN, at("2026-01-01"), float("inf"), 10_000)

    assert 200 < len(found) < 400
    assert next_tick("* * * * *", BERLIN, at("9999-12-31T23:59")) is None
    assert next_tick("* * * * *", BERLIN, 1e18) is None


def test_every_zone_of_the_data_base_is_taken() -> None:
    refused = [name for name in zoneinfo.available_timezones() if not cron.ZONE.fullmatch(name)]

    assert set(refused) <= {"localtime"}  # that of the machine, which is another on each


# --- jitter -------------------------------------------------------------------------------------


def test_jitter_is_the_same_each_time_and_its_own_for_each_schedule_and_tick() -> None:
    drawn = [jitter_of(name, tick, 60.0) for name in ("a", "b") for tick in (0.0, 60.0, 120.0)]

    assert drawn == [jitter_of(name, tick, 60.0) for name in ("a", "b") for tick in (0, 60, 120)]
    assert len(set(drawn)) == 6
    assert jitter_of("a", 60.0, 0.0) == 0.0


def test_jitter_is_even_over_its_range() -> None:
    drawn = [jitter_of("nightly", 60.0 * n, 10.0) for n in range(10_000)]

    assert min(drawn) >= 0.0
    assert max(drawn) < 10.0
    counts = [sum(1 for one in drawn if int(one) == second) for second in range(10)]
    assert all(850 < count < 1150 for count in counts), counts


# --- all lines ----------------------------------------------------------------------------------


def one_field(first: int, last: int, steps: list[int]) -> st.SearchStrategy[str]:
    value = st.integers(first, last)
    return st.one_of(
        st.just("*"),
        st.sampled_from(steps).map(lambda step: f"*/{step}"),
        value.map(str),
        st.lists(value, min_size=2, max_size=3).map(lambda some: ",".join(map(str, some))),
        st.tuples(value, value).map(lambda two: f"{min(two)}-{max(two)}"),
    )


MINUTES, HOURS = one_field(0, 59, [1, 7, 15, 20, 30]), one_field(0, 23, [1, 2, 3, 5, 12])
DAYS = st.sampled_from(["* * *", "* * *", "*/2 * *", "* 3,4,10 *", "* * 6,0", "* * MON-SAT"])
LINES = st.tuples(MINUTES, HOURS, DAYS).map(" ".join)


def values(text: str, last: int) -> set[int]:
    """What a field of `LINES` names, read without the library."""
    found: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        low, _, high = span.replace("*", f"0-{last}").partition("-")
        found.update(range(int(low), int(high or low) + 1, int(step or 1)))
    return found


def by_hand(line: str, zone: str, first: int, last: int) -> Iterator[int]:
    """Ticks of a line for each day, in whole minutes from one to the other, from the rules alone.

    It walks real time a minute at a time and looks at the clock.
    """
    minute, hour = line.split()[:2]
    minutes, hours = values(minute, 59), values(hour, 23)

    def fits(shown: datetime) -> bool:
        return shown.minute in minutes and shown.hour in hours

    follows_the_clock = minute[0] == "*" or hour[0] == "*"
    seen: datetime | None = None  # the latest that the clock has shown
    for moment in range(first - int(DAY_S), last + 1, 60):
        shown = datetime.fromtimestamp(moment, ZoneInfo(zone)).replace(tzinfo=None)
        if follows_the_clock:
            due = fits(shown)
        else:
            passed = 0 if seen is None else max(0, int((shown - seen) / timedelta(minutes=1)))
            due = any(fits(shown - timedelta(minutes=n)) for n in range(passed))
        seen = max(shown, seen or shown)
        if due and moment >= first:
            yield moment


@given(
    minute=MINUTES,
    hour=HOURS,
    change=st.sampled_from(CHANGES),
    before_min=st.integers(-180, 1_500),
    later_min=st.integers(1, 1_800),
)
@settings(max_examples=150, deadline=None)
def test_ticks_are_those_that_a_walk_through_real_time_finds(
    minute: str, hour: str, change: tuple[str, datetime], before_min: int, later_min: int
) -> None:
    zone, moment = change
    line = f"{minute} {hour} * * *"
    first = int(moment.timestamp()) - 60 * before_min
    last = first + 60 * later_min

    found = ticks(line, zone, first - 1, last, 10_000)

    assert found == list(by_hand(line, zone, first, last))


@given(
    line=LINES,
    change=st.sampled_from(CHANGES),
    offsets_s=st.tuples(*[st.floats(-DAY_S, 2 * DAY_S)] * 3).map(sorted),
)
@settings(max_examples=150, deadline=None)
def test_ticks_increase_and_those_of_two_spans_are_those_of_both_together(
    line: str, change: tuple[str, datetime], offsets_s: list[float]
) -> None:
    zone, moment = change
    first, between, last = (moment.timestamp() + offset for offset in offsets_s)

    together = ticks(line, zone, first, last, 10_000)

    assert all(one < another for one, another in pairwise(together))
    parts = ticks(line, zone, first, between, 10_000), ticks(line, zone, between, last, 10_000)
    assert together == parts[0] + parts[1]


@given(line=LINES, change=st.sampled_from(CHANGES), offset_s=st.floats(-DAY_S, DAY_S))
@settings(max_examples=100, deadline=None)
def test_one_tick_after_another_gives_the_same_as_all_at_once(
    line: str, change: tuple[str, datetime], offset_s: float
) -> None:
    zone, moment = change
    start = moment.timestamp() + offset_s
    together = ticks(line, zone, start, start + 400 * DAY_S, 50)

    one_by_one: list[float] = []
    for _ in together:
        tick = next_tick(line, zone, one_by_one[-1] if one_by_one else start)
        assert tick is not None
        one_by_one.append(tick)

    assert one_by_one == together
