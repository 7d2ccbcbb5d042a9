"""Job types as data: what whoever accepts, plans or lists jobs has to know of them.

A `TypeCard` says the same of a type whose code is imported here and of one that was deployed later
and runs only on workers. Rule: a card holds no code, so it can lie in the store beside the code
that it describes.
"""

import hashlib
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from jobs.definition import PLACEHOLDER, JobDefinition
from jobs.fan_out import DEFAULT_AT_ONCE, FanOut
from jobs.retry import DEFAULT_RETRY, RetryPolicy
from jobs.workflow import Workflow

__all__ = ["StepCard", "TypeCard", "card_of", "limit_keys"]

#: A key with params filled in that is longer is cut, and told apart by a checksum.
KEY_CHARS = 300


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
    retry: RetryPolicy = DEFAULT_RETRY
    unique_for_s: float | None = None
    unique_by: list[str] = []
    expected_s: float | None = None
    resumable: bool = False
    limits: list[str] = []
    #: Whether it says itself which queue it waits in.
    has_queue: bool = True
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


def limit_keys(limits: Iterable[str], values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys of limits with params filled in: `api:{host}` becomes `api:example.com`.

    A param whose value is not known, or is none, stands as `?`.
    """

    def filled(found: "re.Match[str]") -> str:
        value = values.get(found[1])
        return "?" if value is None or isinstance(value, (dict, list)) else str(value)

    keys = (PLACEHOLDER.sub(filled, key) for key in limits)
    return tuple(dict.fromkeys(key if len(key) <= KEY_CHARS else _short(key) for key in keys))


def _short(key: str) -> str:
    digest = hashlib.sha256(key.encode()).hexdigest()[:32]
    return f"{key[: KEY_CHARS - 33]}~{digest}"


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
        expected_s=definition.expected_s,
        resumable=definition.resumable,
        limits=list(definition.limits),
        has_queue=definition.has_queue,
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
