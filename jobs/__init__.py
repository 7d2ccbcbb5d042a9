"""What a job is: the SDK that job authors import, and the built-in job types in `jobs.library`.

Read `definition.py` (declaring a type), then `context.py` (what a handler may touch), then
`outcome.py` and `retry.py` (how an attempt may end). This floor knows neither Ray nor HTTP.
"""

from jobs.context import Context
from jobs.definition import JobDefinition, job
from jobs.errors import DraymanError
from jobs.outcome import Discard, Retry, Snooze, StopRequested
from jobs.retry import RetryPolicy

__all__ = [
    "Context",
    "Discard",
    "DraymanError",
    "JobDefinition",
    "Retry",
    "RetryPolicy",
    "Snooze",
    "StopRequested",
    "job",
]
