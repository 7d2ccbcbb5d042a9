"""Built-in job types, one noun a file.

Rule: every type is named here, so that the registry finds it without importing what its handler
needs (pyarrow, reportlab, ...).
"""

from jobs.library.email_campaign import email_campaign
from jobs.library.http_call import call_http
from jobs.library.image_variants import image_variants
from jobs.library.mail_send import send_mail
from jobs.library.model_infer import infer
from jobs.library.notify_email import notify_email
from jobs.library.notify_push import notify_push
from jobs.library.notify_webhook import notify_webhook
from jobs.library.report_annual import annual_report
from jobs.library.report_deliver import deliver_report
from jobs.library.report_fetch import fetch_tables
from jobs.library.table_export import table_export
from jobs.library.table_import import table_import
from jobs.library.video_transcode import transcode

__all__ = [
    "annual_report",
    "call_http",
    "deliver_report",
    "email_campaign",
    "fetch_tables",
    "image_variants",
    "infer",
    "notify_email",
    "notify_push",
    "notify_webhook",
    "send_mail",
    "table_export",
    "table_import",
    "transcode",
]
