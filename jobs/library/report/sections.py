"""Which sections the report has, in order.

Rule: a section whose table was not given, or has nothing to say, is left out.
"""

from jobs.library.report.circumstances import comparison, fleet_types, weather_classes
from jobs.library.report.gather import Report
from jobs.library.report.method import method
from jobs.library.report.operations import figures, months, network, punctuality
from jobs.library.report.section import Section

__all__ = ["sections_of"]


def sections_of(report: Report) -> list[Section]:
    """Return the sections that the data can fill, in order."""
    sections = [figures(report), months(report), network(report), punctuality(report)]
    if report.fleet is not None and report.fleet.planes:
        sections.append(fleet_types(report, report.fleet))
    if report.weather is not None and report.weather.factors:
        sections.append(weather_classes(report, report.weather))
    if len(report.activity.carriers) > 1:
        sections.append(comparison(report))
    sections.append(
        Section(
            "How these figures were made",
            "Every figure comes from one pass over the tables below; nothing is sampled.",
            lambda: method(report),
        )
    )
    return sections
