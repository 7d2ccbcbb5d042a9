"""Several job types as one job: steps that wait for each other and use what others made.

    deliver = workflow("report.deliver", Delivery)
    tables = deliver.step("fetch", fetch_tables, {"source": param("source")})
    report = deliver.step("render", annual_report, {"flights": tables.file("flights.parquet")})
    deliver.step("mail", send_mail, {"to": param("to"), "pages": report.result("pages")})

Rule 1: a workflow is data. Params of a step are JSON in which one of three objects stands for a
value that is not known yet:

    {"$param": "to"}                     a param of the workflow ("" for all of them)
    {"$result": "render.pages"}          what a step returned, or a part of it
    {"$file": "render/report.pdf"}       the URI of a file that a step kept

Rule 2: a step waits for every step it refers to, and for those in `after`. Rule 3: a step may be of
any type, also one that fans out. A workflow is no step of another: submit it with `ctx.submit`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from jobs.definition import JobDefinition, declared
from jobs.retry import RetryPolicy

__all__ = ["Step", "StepDefinition", "Workflow", "param", "workflow"]

STEP_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")

#: What becomes of the rest when a step fails: `stop` ends what runs and starts nothing more;
#: `continue` runs every step that does not need it, and then the job fails.
OnFailure = Literal["stop", "continue"]


def param(path: str = "") -> dict[str, str]:
    """Stand for a param of the workflow: `param("to")`, `param("report.year")`."""
    return {"$param": path}


@dataclass(frozen=True)
class StepDefinition:
    """One step as declared. What is None is taken from its type."""

    name: str
    type: str
    params: Mapping[str, Any]
    after: tuple[str, ...] = ()
    queue: str | None = None
    max_attempts: int | None = None
    timeout_s: float | None = None
    retry: RetryPolicy | None = None


@dataclass(frozen=True)
class Step:
    """A declared step, for others to refer to."""

    name: str

    def result(self, path: str = "") -> dict[str, str]:
        """Stand for what it returned, or for the part of it at `path` (`rows.0.id`)."""
        return {"$result": f"{self.name}.{path}" if path else self.name}

    def file(self, name: str) -> dict[str, str]:
        """Stand for the URI of the file `name` that it kept."""
        return {"$file": f"{self.name}/{name}"}


@dataclass(frozen=True, kw_only=True)
class Workflow(JobDefinition):
    """A job type made of steps."""

    on_failure: OnFailure = "stop"
    steps: list[StepDefinition] = field(default_factory=list)
    #: The step whose result is the job's; None: the last one declared.
    result: str | None = None

    @property
    def home(self) -> str:
        """Where it is declared, for messages."""
        return f"workflow {self.name}"

    @property
    def summary(self) -> str:
        """Its steps in words."""
        return "Workflow: " + ", ".join(step.name for step in self.steps)

    def step(
        self,
        name: str,
        definition: JobDefinition | str,
        params: Mapping[str, Any] | None = None,
        *,
        after: Sequence[Step | str] = (),
        queue: str | None = None,
        max_attempts: int | None = None,
        timeout_s: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Step:
        """Add a step of a job type (or of the name of one) and return it.

        Raises ValueError for a name that is taken or cannot be one.
        """
        if not STEP_NAME.fullmatch(name):
            raise ValueError(
                f"step {name!r}: use lower-case letters, digits and '_', a letter first"
            )
        if any(step.name == name for step in self.steps):
            raise ValueError(f"workflow {self.name!r} has a step {name!r} already")
        if isinstance(definition, Workflow):
            raise ValueError(f"step {name!r}: a workflow is no step; submit it with ctx.submit")
        self.steps.append(
            StepDefinition(
                name,
                definition if isinstance(definition, str) else definition.name,
                dict(params or {}),
                tuple(step if isinstance(step, str) else step.name for step in after),
                queue,
                max_attempts,
                timeout_s,
                retry,
            )
        )
        return Step(name)


def workflow(
    name: str,
    params: type[BaseModel],
    *,
    on_failure: OnFailure = "stop",
    result: str | None = None,
    unique_for_s: float | None = None,
    unique_by: tuple[str, ...] = (),
) -> Workflow:
    """Declare the workflow `name`; add its steps to what is returned.

    Raises ValueError, naming what to change, if the declaration is wrong.
    """

    def handler(ctx: Any, params: Any) -> Any:
        raise TypeError(f"{name!r} is a workflow: its steps run, it does not")

    return declared(
        Workflow,
        name,
        handler,
        model=params,
        on_failure=on_failure,
        result=result,
        unique_for_s=unique_for_s,
        unique_by=unique_by,
    )
