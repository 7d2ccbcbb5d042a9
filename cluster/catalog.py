"""Job types as data: what whoever accepts, plans or lists jobs has to know of them.

A `TypeCard` says the same of a type whose code is imported here and of one that was deployed later
and runs only on workers. Rule: a card holds no code, so it can lie in the store beside the code
that it describes.
"""

import inspect
from typing import Any, Literal

import msgspec

from jobs.definition import JobDefinition
from jobs.fan_out import DEFAULT_AT_ONCE, FanOut
from jobs.retry import RetryPolicy
from jobs.workflow import Workflow

__all__ = ["StepCard", "TypeCard", "card_of"]


class StepCard(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step of a workflow as declared. What is None is taken from its type."""

    name: str
    type: str
    #: A JSON object with references in it, see `jobs/workflow.py`.
    params: msgspec.Raw = msgspec.Raw(b"{}")
    after: list[str] = []
    queue: str | None = None
    max_attempts: int | None = None
    timeout_s: float | None = None
    retry: RetryPolicy | None = None


class TypeCard(msgspec.Struct, frozen=True, omit_defaults=True):
    """One job type."""

    name: str
    kind: Literal["job", "fan_out", "workflow"]
    queue: str
    max_attempts: int
    #: JSON Schema of the params.
    schema: msgspec.Raw
    summary: str = ""
    timeout_s: float | None = None
    grace_s: float = 10.0
    retry: RetryPolicy = RetryPolicy()
    unique_for_s: float | None = None
    unique_by: list[str] = []
    #: Names of the result's fields, if its annotation says so; None if it may be anything.
    result_fields: list[str] | None = None
    # Of a fan-out.
    join: bool = False
    at_once: int = DEFAULT_AT_ONCE
    tolerate: float = 0.0
    # Of a workflow.
    steps: list[StepCard] = []
    goes_on: bool = False
    result: str = ""


def card_of(definition: JobDefinition) -> TypeCard:
    """Return the card of a type that is imported here."""
    kind: Literal["job", "fan_out", "workflow"] = "job"
    more: dict[str, Any] = {}
    if isinstance(definition, FanOut):
        kind = "fan_out"
        more = {
            "join": definition.join is not None,
            "at_once": definition.at_once,
            "tolerate": definition.tolerate,
        }
    elif isinstance(definition, Workflow):
        kind = "workflow"
        last = definition.steps[-1].name if definition.steps else ""
        more = {
            "steps": [
                StepCard(
                    step.name,
                    step.type,
                    msgspec.Raw(msgspec.json.encode(step.params)),
                    list(step.after),
                    step.queue,
                    step.max_attempts,
                    step.timeout_s,
                    step.retry,
                )
                for step in definition.steps
            ],
            "goes_on": definition.on_failure == "continue",
            "result": definition.result or last,
        }
    return TypeCard(
        name=definition.name,
        kind=kind,
        queue=definition.queue,
        max_attempts=definition.max_attempts,
        schema=msgspec.Raw(msgspec.json.encode(definition.params_model.model_json_schema())),
        summary=definition.summary,
        timeout_s=definition.timeout_s,
        grace_s=definition.grace_s,
        retry=definition.retry,
        unique_for_s=definition.unique_for_s,
        unique_by=list(definition.unique_by),
        result_fields=_result_fields(definition),
        **more,
    )


def _result_fields(definition: JobDefinition) -> list[str] | None:
    """Return the fields of a handler's result whose annotation is a model."""
    function: Any = definition.handler
    if isinstance(definition, FanOut):
        if definition.join is None:
            return ["chunks"]
        function = definition.join
    try:
        kind = inspect.get_annotations(function, eval_str=True).get("return")
    except (NameError, TypeError):
        return None  # An annotation for type checkers alone says nothing here.
    fields = getattr(kind, "model_fields", None)
    return sorted(fields) if fields else None
