"""The annual report, from tables to PDF.

Read `tables.py` (opening what a URI names), `sums.py` and `activity.py` (one pass over the
flights), `fleet.py` and `weather.py` (joins), `headline.py` (the figures), `gather.py` (all of it
into one `Report`), then `fonts.py`, `layout.py` and `charts.py` (how it looks), `sections.py` (what
it says) and `compose.py` (the pages).

Rule 1: sums are sums of integers, so that neither threads, batches nor parts change a figure.
Rule 2: whatever is listed is sorted by a total order. Rule 3: no clock, no entropy.
Rule 4: memory is bounded by the number of keys (hours, airports, aircraft), never by rows.
"""

from jobs.library.report.compose import compose
from jobs.library.report.gather import check, gather, tally
from jobs.library.report.tables import parts_of

__all__ = ["check", "compose", "gather", "parts_of", "tally"]
