"""What a job is: the SDK that job authors import, and the built-in job types in `jobs.library`.

Read `definition.py` (declaring a type), `fan_out.py` and `workflow.py` (larger ones), then
`context.py` (what a handler may touch), `outcome.py` and `retry.py` (how an attempt may end).
This floor knows neither Ray nor HTTP.
"""

from jobs.context import Context
from jobs.definition import JobDefinition, job
from jobs.errors import DraymanError
from jobs.fan_out import FanOut, fan_out
from jobs.outcome import Discard, Retry, Snooze, StopRequested
from jobs.results import ChunkFailure, ChunkResult, Results
from jobs.retry import RetryPolicy
from jobs.workflow import Workflow, param, workflow

__all__ = [
    "ChunkFailure",
    "ChunkResult",
    "Context",
    "Discard",
    "DraymanError",
    "FanOut",
    "JobDefinition",
    "Results",
    "Retry",
    "RetryPolicy",
    "Snooze",
    "StopRequested",
    "Workflow",
    "fan_out",
    "job",
    "param",
    "workflow",
]
