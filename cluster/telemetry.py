"""How processes of ours log: one line an event, a stable key and ids, to stdout.

A traceback shows code and never the values of variables: those may hold tokens and secrets. With
`DRAYMAN_LOG=json` a line is one JSON object, with `event`, `level`, `timestamp`, and the keys that
`docs/observability.md` lists.
"""

import logging
import os
from collections.abc import Mapping

import structlog

__all__ = ["LOG_ENV", "configure_logging"]

LOG_ENV = "DRAYMAN_LOG"


def configure_logging(environ: Mapping[str, str] = os.environ) -> None:
    """Set logging up for this process. Call it once, where a process begins."""
    shown: list[structlog.typing.Processor] = [
        structlog.dev.ConsoleRenderer(
            colors=False, exception_formatter=structlog.dev.plain_traceback
        )
    ]
    if environ.get(LOG_ENV) == "json":
        # The plain trace, as text: the one in parts has local variables in it.
        shown = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str, ensure_ascii=False),
        ]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *shown,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(),
    )
