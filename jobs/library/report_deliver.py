"""`report.deliver`: the annual report, from tables somewhere to a mail in someone's inbox.

fetch    report.fetch    the tables, kept as outputs of this job
render   report.annual   the PDF
mail     mail.send       the PDF and its headline figures
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from jobs.library.mail_send import Address, MailParams, send_mail
from jobs.library.report_annual import OUTPUT_NAME, ReportParams, annual_report
from jobs.library.report_fetch import fetch_tables
from jobs.workflow import param, workflow

__all__ = ["DeliveryParams", "deliver_report"]

TABLES = ("flights", "airlines", "airports", "planes", "weather")


class DeliveryParams(ReportParams):
    """A report, and who gets it."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    to: Annotated[list[Address], Field(min_length=1, max_length=50)]
    cc: Annotated[list[Address], Field(max_length=50)] = []
    subject: Annotated[str, Field(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")] = "Annual report"
    text: Annotated[str, Field(max_length=1_000_000)] = (
        "The annual report is attached. Its headline figures:"
    )
    sender: Address | None = None
    in_doubt: Annotated[
        Literal["skip", "resend"],
        Field(description="Whether a mail whose answer was lost is sent again; see mail.send"),
    ] = "skip"
    server: Annotated[
        str,
        Field(
            pattern=r"^smtp[A-Za-z0-9._-]{0,60}$",
            description="Name of the worker's secret that holds the server's URL; see mail.send",
        ),
    ] = MailParams.model_fields["server"].default


deliver_report = workflow("report.deliver", DeliveryParams)

_fetched = deliver_report.step("fetch", fetch_tables, {name: param(name) for name in TABLES})
_report = deliver_report.step(
    "render",
    annual_report,
    {
        # By result and not by file: which of them there are depends on what was given.
        **{name: _fetched.result(f"tables.{name}") for name in TABLES},
        **{
            name: param(name)
            for name in ("carrier", "year", "title", "destinations", "partition_rows")
        },
    },
)
deliver_report.step(
    "mail",
    send_mail,
    {
        **{
            name: param(name)
            for name in ("to", "cc", "subject", "text", "sender", "in_doubt", "server")
        },
        "figures": _report.result("headline"),
        "attachments": [{"uri": _report.file(OUTPUT_NAME), "name": OUTPUT_NAME}],
    },
)
