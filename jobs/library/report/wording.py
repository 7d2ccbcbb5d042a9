"""How figures read in a sentence, and the orders in which things are listed."""

from datetime import date

from jobs.library.report.headline import printed
from jobs.library.report.sums import Sums

__all__ = [
    "MONTHS",
    "WEEKDAYS",
    "by_flights",
    "count",
    "day_name",
    "delay",
    "hard_days",
    "hardship",
    "minutes",
    "months_sentence",
    "percent",
    "points_apart",
]

#: Written out, since those of `calendar` follow the process's locale. January is at 1.
MONTHS = (
    "",
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def count(number: int, noun: str, plural: str = "s") -> str:
    """Return `1 airport`, `47 destinations`; `plural` is what the noun adds."""
    return f"{printed(number)} {noun}{'' if number == 1 else plural}"


def percent(value: float | None) -> str:
    """Return `77.5%`."""
    return printed(value) if value is None else f"{printed(value)}%"


def minutes(value: float | None) -> str:
    """Return `3.6 min`."""
    return printed(value) if value is None else f"{printed(value)} min"


def delay(minutes: float | None) -> str:
    """Return `6 minutes early`."""
    if minutes is None:
        return printed(None)
    number = printed(abs(minutes)).removesuffix(".0")
    return f"{number} minutes {'early' if minutes < 0 else 'late'}"


def points_apart(difference: float) -> str:
    """Return how far two percentages are apart, for the middle of a sentence."""
    if abs(difference) < 0.05:
        return "as many as"
    return f"{printed(abs(difference))} points {'above' if difference > 0 else 'below'}"


def day_name(day: date) -> str:
    """Return `8 February 2013`."""
    return f"{day.day} {MONTHS[day.month]} {day.year}"


def by_flights(groups: dict[str, Sums]) -> list[tuple[str, Sums]]:
    """Return the groups, those with the most flights first."""
    return sorted(groups.items(), key=lambda item: (-item[1].flights, item[0]))


def hard_days(days: dict[date, Sums]) -> list[tuple[date, Sums]]:
    """Return the days with flights cancelled or an hour late, those with the most first."""
    ranked = sorted(days.items(), key=lambda item: (-hardship(item[1]), item[0]))
    return [(day, sums) for day, sums in ranked if hardship(sums)]


def hardship(sums: Sums) -> int:
    """Return how many flights went wrong: cancelled, or an hour late or more."""
    return sums.cancelled + sums.long_delays


def months_sentence(months: dict[int, Sums]) -> str:
    """Return which month was the busiest, the most and the least punctual."""
    busiest = max(months, key=lambda m: (months[m].flights, -m))
    sentence = (
        f"{MONTHS[busiest]} was the busiest month, with {printed(months[busiest].flights)} flights"
    )
    rates = {m: s.on_time_pct for m, s in months.items() if s.on_time_pct is not None}
    if len(rates) < 2:
        return sentence + "."
    best = max(rates, key=lambda m: (rates[m], -m))
    worst = min(rates, key=lambda m: (rates[m], m))
    return (
        f"{sentence}; {MONTHS[best]} was the most punctual ({percent(rates[best])} on time) and "
        f"{MONTHS[worst]} the least ({percent(rates[worst])})."
    )
