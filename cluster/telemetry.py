"""How processes of ours log: one line an event, a stable key and ids, to stdout.

A traceback shows code and never the values of variables: those may hold tokens and secrets.
"""

import logging

import structlog

__all__ = ["configure_logging"]


def configure_logging() -> None:
    """Set logging up for this process. Call it once, where a process begins."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(
                colors=False, exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(),
    )
