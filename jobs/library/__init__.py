"""Built-in job types, one noun a file.

Rule: every type is named here, so that the registry finds it without importing what its handler
needs (pyarrow, reportlab, ...).
"""

from jobs.library.report_annual import annual_report

__all__ = ["annual_report"]
