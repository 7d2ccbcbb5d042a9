"""Built-in job types, one noun a file.

Rule: every type is named here, so that the registry finds it without importing what its handler
needs (pyarrow, reportlab, ...).
"""

from jobs.library.image_variants import image_variants
from jobs.library.mail_send import send_mail
from jobs.library.report_annual import annual_report
from jobs.library.report_deliver import deliver_report
from jobs.library.report_fetch import fetch_tables
from jobs.library.table_export import table_export
from jobs.library.table_import import table_import
from jobs.library.video_transcode import transcode

__all__ = [
    "annual_report",
    "deliver_report",
    "fetch_tables",
    "image_variants",
    "send_mail",
    "table_export",
    "table_import",
    "transcode",
]
