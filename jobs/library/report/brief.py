"""The cover's words: six figures, and the year in a few sentences."""

from jobs.library.report.gather import Report
from jobs.library.report.headline import printed
from jobs.library.report.sums import ON_TIME_MINUTES, Sums, add_up
from jobs.library.report.wording import (
    count,
    day_name,
    hard_days,
    hardship,
    minutes,
    months_sentence,
    percent,
    points_apart,
)

__all__ = ["brief", "cover_figures"]

#: A day on which fewer flights went wrong is not worth a sentence.
HARD_DAY_FLIGHTS = 5


def cover_figures(report: Report) -> list[tuple[str, str]]:
    """Return the six figures of the cover, each with its label."""
    head = report.headline
    figures = [
        (printed(head.flights), "flights scheduled"),
        (percent(head.on_time_pct), f"arrived less than {ON_TIME_MINUTES} minutes late"),
        (percent(head.cancelled_pct), f"cancelled: {printed(head.cancelled)} flights"),
        (printed(head.distance_miles), "miles flown"),
        (minutes(head.mean_arrival_delay_min), "mean arrival delay"),
    ]
    if report.fleet is not None and report.fleet.speaks_for_all:
        figures.append((printed(head.seats_flown), "seats flown, on aircraft of known type"))
    else:
        figures.append((printed(head.aircraft), "aircraft in service"))
    return figures


def brief(report: Report) -> list[str]:
    """Return the year in three to five sentences."""
    head, activity = report.headline, report.activity
    points = [
        f"{report.airline} scheduled {printed(head.flights)} flights from "
        f"{count(head.origins, 'airport')} to {count(head.destinations, 'destination')} and "
        f"operated {printed(head.operated)} of them with {count(head.aircraft, 'aircraft', '')}."
    ]
    if activity.before is not None:
        points.append(_against_last_year(activity.total, activity.before, report.year - 1))
    others = add_up(sums for code, sums in activity.carriers.items() if code != report.carrier)
    own, theirs = activity.total.on_time_pct, others.on_time_pct
    if own is not None and theirs is not None:
        points.append(
            f"{percent(own)} of its flights arrived on time, {points_apart(own - theirs)} the "
            f"{percent(theirs)} of all other airlines in the data."
        )
    if len(activity.months) > 1:
        points.append(months_sentence(activity.months))
    worst = hard_days(activity.days)
    if worst and hardship(worst[0][1]) >= HARD_DAY_FLIGHTS:
        day, sums = worst[0]
        points.append(
            f"The hardest day was {day_name(day)}: {printed(sums.cancelled)} of "
            f"{printed(sums.flights)} flights were cancelled and {printed(sums.long_delays)} "
            "arrived an hour late or more."
        )
    return points


def _against_last_year(now: Sums, before: Sums, year: int) -> str:
    change = 100 * (now.flights - before.flights) / before.flights
    sentence = (
        f"That is {percent(abs(change))} {'more' if change > 0 else 'fewer'} than in {year}"
        if abs(change) >= 0.05
        else f"That is as many as in {year}"
    )
    if now.on_time_pct is not None and before.on_time_pct is not None:
        sentence += (
            f"; the share of flights on time went from {percent(before.on_time_pct)} "
            f"to {percent(now.on_time_pct)}"
        )
    return sentence + "."
