"""What a job type is: a name, a typed handler, and how it wants to be run."""

import inspect
import math
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from jobs.context import Context
from jobs.retry import DEFAULT_RETRY, RetryPolicy

__all__ = [
    "DEFAULT_MAX_ATTEMPTS",
    "LIMITS_MAX",
    "LIMIT_CHARS",
    "PLACEHOLDER",
    "Handler",
    "JobDefinition",
    "declared",
    "job",
    "params_model",
]

NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")
DEFAULT_MAX_ATTEMPTS = 3
#: Keys of limits a job may have, the length of each, and what they are made of.
LIMITS_MAX, LIMIT_CHARS = 4, 200
LIMIT = re.compile(r"([A-Za-z0-9._:@/-]|\{[a-z_][a-z0-9_]*\})+")
PLACEHOLDER = re.compile(r"\{([a-z_][a-z0-9_]*)\}")
Handler = Callable[..., Any]


@dataclass(frozen=True)
class JobDefinition:
    """A job type. Calling it calls the handler, so it stays an ordinary function in tests."""

    name: str
    handler: Handler
    params_model: type[BaseModel]
    #: `def` handlers go to `default` (one at a time per process), `async def` to `io`.
    queue: str
    #: Whether it was declared; else an operator may have another default.
    has_queue: bool = True
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    #: Soft limit of one attempt; a stop is requested when it passes. None: no limit.
    timeout_s: float | None = None
    #: After a requested stop, how long until the attempt's processes are killed.
    grace_s: float = 10.0
    retry: RetryPolicy = DEFAULT_RETRY
    #: Equal requests within this window are one job. Needs no key from the caller.
    unique_for_s: float | None = None
    #: Which params make requests equal; empty means all of them.
    unique_by: tuple[str, ...] = ()
    #: How long it usually runs; None: the cluster learns it.
    expected_s: float | None = None
    #: It saves checkpoints and goes on from the last one, so that it may be stopped and moved.
    resumable: bool = False
    #: Keys of limits that it counts against; `{name}` stands for a param.
    limits: tuple[str, ...] = ()
    #: Modules that its `async def` handler imports itself: workers have them before they take work.
    imports: tuple[str, ...] = ()

    @property
    def home(self) -> str:
        """Where it is declared, for messages."""
        return f"{self.handler.__module__}.{self.handler.__qualname__}"

    @property
    def is_async(self) -> bool:
        """Whether the handler is `async def`."""
        return inspect.iscoroutinefunction(self.handler)

    @property
    def summary(self) -> str:
        """First line of the handler's docstring."""
        return (inspect.getdoc(self.handler) or "").partition("\n")[0]

    def __call__(self, ctx: Context, params: Any) -> Any:
        """Call the handler."""
        return self.handler(ctx, params)


def job(
    name: str,
    *,
    queue: str | None = None,
    max_attempts: int = DEFAULT_MAX_ATTEMPTS,
    timeout_s: float | None = None,
    grace_s: float = 10.0,
    retry: RetryPolicy | None = None,
    unique_for_s: float | None = None,
    unique_by: tuple[str, ...] = (),
    expected_s: float | None = None,
    resumable: bool = False,
    limits: tuple[str, ...] = (),
    imports: tuple[str, ...] = (),
) -> Callable[[Handler], JobDefinition]:
    """Declare `handler(ctx, params)` as the job type `name`; `params` is a pydantic model.

    `limits` names keys like `"api:{host}"`: `{host}` is the param of that name, or a computed field
    of the model. What the operator set for a key holds for all that share it. `imports` names
    modules that only the handler imports, if it is `async def`: workers do so before they take
    work, where the first call would hold up all others.
    Raises TypeError or ValueError at import, naming what to change, if the declaration is wrong.
    """

    def declare(handler: Handler) -> JobDefinition:
        parameters = list(inspect.signature(handler).parameters)
        if len(parameters) != 2:
            raise TypeError(f"job {name!r}: write the handler as handler(ctx, params)")
        return declared(
            JobDefinition,
            name,
            handler,
            queue=queue,
            max_attempts=max_attempts,
            timeout_s=timeout_s,
            grace_s=grace_s,
            retry=retry,
            unique_for_s=unique_for_s,
            unique_by=unique_by,
            expected_s=expected_s,
            resumable=resumable,
            limits=limits,
            imports=imports,
        )

    return declare


D = TypeVar("D", bound=JobDefinition)


def declared(
    cls: type[D],
    name: str,
    handler: Handler,
    *,
    model: type[BaseModel] | None = None,
    queue: str | None = None,
    max_attempts: int = DEFAULT_MAX_ATTEMPTS,
    retry: RetryPolicy | None = None,
    **rest: Any,
) -> D:
    """Return the checked definition; for `job` and whatever else declares types.

    Raises TypeError or ValueError, naming what to change.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"job name {name!r}: use lower-case words joined by dots")
    if max_attempts < 1:
        raise ValueError(f"job {name!r}: max_attempts must be at least 1, got {max_attempts}")
    for limit in ("timeout_s", "grace_s", "unique_for_s", "expected_s"):
        value = rest.get(limit)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(
                f"job {name!r}: {limit} must be a finite number, 0 or more, got {value}"
            )
    model = model or params_model(name, handler)
    unknown = [f for f in rest.get("unique_by", ()) if f not in model.model_fields]
    if unknown:
        raise ValueError(f"job {name!r}: unique_by names no such params: {', '.join(unknown)}")
    _check_limits(name, rest.get("limits", ()), model)
    return cls(
        name=name,
        handler=handler,
        params_model=model,
        has_queue=queue is not None,
        queue=queue or ("io" if inspect.iscoroutinefunction(handler) else "default"),
        max_attempts=max_attempts,
        retry=retry or DEFAULT_RETRY,
        **rest,
    )


def _check_limits(name: str, limits: Any, model: type[BaseModel]) -> None:
    if isinstance(limits, str) or len(limits) > LIMITS_MAX:
        raise ValueError(f"job {name!r}: limits is a tuple of up to {LIMITS_MAX} keys")
    known = {*model.model_fields, *model.model_computed_fields}
    for key in limits:
        if not (0 < len(key) <= LIMIT_CHARS and LIMIT.fullmatch(key)):
            raise ValueError(
                f"job {name!r}: limit {key!r}: use 1 to {LIMIT_CHARS} letters, digits, "
                "'._:@/-' and params in braces"
            )
        unknown = [field for field in PLACEHOLDER.findall(key) if field not in known]
        if unknown:
            raise ValueError(f"job {name!r}: limit {key!r} names no such param: {unknown[0]}")


def params_model(name: str, handler: Handler) -> type[BaseModel]:
    """Return the pydantic model that the handler's second parameter is annotated with."""
    parameters = list(inspect.signature(handler).parameters)
    if len(parameters) < 2:
        raise TypeError(f"job {name!r}: write the handler as handler(ctx, params)")
    model = typing.get_type_hints(handler).get(parameters[1])
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise TypeError(
            f"job {name!r}: annotate {parameters[1]!r} with a pydantic model, got {model!r}"
        )
    return model
