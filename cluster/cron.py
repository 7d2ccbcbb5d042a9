"""When a cron line fires: its ticks as epoch seconds, across every change of the clocks.

Rule 1: a line for a fixed time (none of its seconds, minutes and hours begins with `*`) fires once
for each time it names: of one that comes twice the first, and one that never comes is made up for
the moment the clock is set forward. Rule 2: any other fires whenever a clock on the wall shows a
time that matches: in the hour that is skipped not at all, in the one that is repeated again.
Rule 3: the same arguments give the same ticks, always: nothing here reads a clock or draws lots.

`cronsim` reads the line and counts days without time zones. It was preferred to `croniter`, which
fires a fixed time twice when clocks are set back, is slower, and takes lines that draw lots (`R`).
Time zones are laid over it here: its own take no line of six fields for a fixed time, leave out
ticks after a change of half an hour, and can give one that is not after the moment asked for.
"""

import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from jobs.errors import InvalidInput

__all__ = ["check_cron", "jitter_of", "next_tick", "ticks"]

#: A longer line is no line that a person wrote.
CRON_CHARS_MAX = 500
#: Of the IANA data base. What begins otherwise there is not a zone that is the same everywhere
#: (`localtime`), counts leap seconds (`right/...`), or is no zone at all (`tzdata.zi`).
ZONE = re.compile(r"[A-Z][A-Za-z0-9_+-]{0,31}(/[A-Z][A-Za-z0-9_+-]{0,31}){0,2}")
NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
#: Names of the fields as cronsim tells of them, how many values each has, and how to write them.
FIELDS = {
    "second": (60, "0-59"),
    "minute": (60, "0-59"),
    "hour": (24, "0-23"),
    "day-of-month": (31, "1-31, L (the last day) or LW (the last Monday to Friday)"),
    "month": (12, "1-12 or JAN-DEC"),
    "day-of-week": (7, "0-7 or SUN-SAT (0 and 7 are Sunday), 5L (the last Friday) or 1#2"),
}
#: Where to look from whether a line fires at all. Any day will do: cronsim looks through 50 years,
#: and those have every kind of year.
A_DAY = datetime(2000, 1, 1)
#: Ticks end here, as far before the last year of the calendar as cronsim looks ahead, and more.
LAST_YEAR = 9900
LAST = datetime(LAST_YEAR, 1, 1, tzinfo=UTC).timestamp()


def check_cron(expression: str, timezone: str) -> None:
    """Raise InvalidInput if there is no such line, it never fires, or there is no such zone."""
    _zone(timezone)
    line = _line(expression)
    names = list(FIELDS)[-len(line.split()) :]
    for name, text in zip(names, line.split(), strict=True):
        _check_steps(name, text)
    try:
        walls = CronSim(line, A_DAY)
    except CronSimError as error:
        raise InvalidInput("cron", _reason(line, str(error), names)) from None
    if next(walls, None) is None:
        raise InvalidInput("cron", f"never fires: no day matches {expression!r}")


def next_tick(cron: str, timezone: str, after: float) -> float | None:
    """Return the first tick after this moment, not at it; None: it never fires again.

    Raises InvalidInput as `check_cron` does.
    """
    return next(_ticks(cron, timezone, after), None)


def ticks(cron: str, timezone: str, after: float, through: float, limit: int) -> list[float]:
    """Return the ticks after one moment and not after another: the first `limit` of them."""
    due = takewhile(lambda tick: tick <= through, _ticks(cron, timezone, after))
    return list(islice(due, limit))


def jitter_of(name: str, tick: float, jitter_s: float) -> float:
    """Return how late this schedule's job is for this tick: always the same, 0 to `jitter_s`."""
    digest = hashlib.blake2b(f"{name}\n{tick:.0f}".encode(), digest_size=8).digest()
    # 53 bits are as many as a float holds; with all 64 the share could be rounded up to 1.
    return jitter_s * (int.from_bytes(digest, "big") >> 11) / 2**53


def _ticks(cron: str, timezone: str, after: float) -> Iterator[float]:
    zone, line = _zone(timezone), _line(cron)
    if after >= LAST:
        return
    try:
        found = CronSim(line, _shown(after, zone))
    except CronSimError:
        check_cron(cron, timezone)  # it says what is wrong
        raise
    walls = takewhile(lambda wall: wall.year < LAST_YEAR, found)
    is_fixed = not any(field.startswith("*") for field in line.split()[:-3])
    yield from map(float, (_fixed if is_fixed else _shown_ticks)(line, walls, zone, after))


def _fixed(line: str, walls: Iterator[datetime], zone: ZoneInfo, after: float) -> Iterator[int]:
    for wall in walls:
        early, late = _moments(wall, zone)
        tick = early if early <= late else _change(zone, late, early)
        if tick > after:  # several times that never come are made up for by one tick
            yield tick
            after = tick


def _shown_ticks(
    line: str, walls: Iterator[datetime], zone: ZoneInfo, after: float
) -> Iterator[int]:
    back = _set_back(_shown(after, zone), zone, after)
    for wall in walls:
        early, late = _moments(wall, zone)
        if early > late:
            continue  # no clock shows it
        tick = early if early > after else late
        if back is not None and tick >= back:
            yield from _repeated(line, zone, back)
            back = None
        if back is None and tick < late:
            back = _change(zone, early, late)
        yield tick
    if back is not None:
        yield from _repeated(line, zone, back)


def _repeated(line: str, zone: ZoneInfo, back: int) -> Iterator[int]:
    """Yield the ticks of the time that clocks show again after they were set back."""
    for wall in CronSim(line, _shown(back, zone) - timedelta(seconds=1)):
        early, late = _moments(wall, zone)
        if early >= back:
            return  # it was not shown before
        yield late


def _set_back(wall: datetime, zone: ZoneInfo, now: float) -> int | None:
    """Return when clocks are set back so that they show this time again; None: they are not."""
    early, late = _moments(wall, zone)
    return _change(zone, early, late) if early <= now < early + 1 and early < late else None


def _shown(moment: float, zone: ZoneInfo) -> datetime:
    """Return what a clock on the wall shows, to the second below."""
    return datetime.fromtimestamp(moment // 1, zone).replace(tzinfo=None)


def _moments(wall: datetime, zone: ZoneInfo) -> tuple[int, int]:
    """Return when a clock shows this: both moments if it comes twice, else the same two times.

    Of a time that is skipped the first is later than the second: the moment lies between them at
    which the clock is set forward (PEP 495).
    """
    aware = wall.replace(tzinfo=zone, fold=0)
    return int(aware.timestamp()), int(aware.replace(fold=1).timestamp())


def _change(zone: ZoneInfo, low: int, high: int) -> int:
    """Return the first moment after `low` that has the offset from UTC that `high` has."""
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(middle, zone) == _offset(low, zone):
            low = middle
        else:
            high = middle
    return high


def _offset(moment: int, zone: ZoneInfo) -> timedelta | None:
    return datetime.fromtimestamp(moment, zone).utcoffset()


def _zone(name: str) -> ZoneInfo:
    """Return the time zone. The name is checked first: it becomes the path of a file."""
    try:
        if ZONE.fullmatch(name):
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, OSError):  # OSError: `Europe` is a folder
        pass
    raise InvalidInput(
        "timezone", f"there is no time zone {name[:100]!r}; write for example UTC or Europe/Berlin"
    )


def _line(expression: str) -> str:
    """Return the fields, five or six; a nickname is written out."""
    line = NICKNAMES.get(expression.strip().lower(), expression)
    if len(line) > CRON_CHARS_MAX:
        raise InvalidInput("cron", f"has {len(line):,} characters; at most {CRON_CHARS_MAX}")
    if line.strip().startswith("@"):
        raise InvalidInput("cron", f"there is no {line.strip()!r}; there is {', '.join(NICKNAMES)}")
    if len(line.split()) not in (5, 6):
        raise InvalidInput(
            "cron",
            f"has {len(line.split())} fields; write five (minute, hour, day of month, month, day "
            "of week), or six with the second before them",
        )
    return line


def _check_steps(name: str, text: str) -> None:
    """Raise InvalidInput for a step that is longer than the field: it is not what was meant."""
    values, _ = FIELDS[name]
    for step in re.findall(r"/(\d+)", text):
        if int(step) > values:
            raise InvalidInput(
                "cron", f"{name} {text!r}: a step of {step} is longer than the field, {values}"
            )


def _reason(line: str, told: str, names: list[str]) -> str:
    """Return what is wrong, in words that tell how to mend it."""
    name = told.removeprefix("Bad ")
    text = line.split()[names.index(name)]
    if name == "day-of-month" and _is_known(f"* * {text} * *"):
        return f"never fires: no such month has a day {text}"
    return f"{name} {text[:100]!r} is not right; write {FIELDS[name][1]}, `*`, lists, ranges, steps"


def _is_known(line: str) -> bool:
    try:
        CronSim(line, A_DAY)
    except CronSimError:
        return False
    return True
