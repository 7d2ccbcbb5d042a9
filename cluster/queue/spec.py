"""What was asked for: one submitted job, as it travels and as the journal keeps it.

A `JobSpec` is immutable and stays JSON bytes wherever nobody needs to look inside: the gateway
encodes it once, and those bytes go through the manager into the journal and on to the worker.
"""

import msgspec

from jobs.retry import DEFAULT_RETRY, RetryPolicy

__all__ = [
    "NO_PARAMS",
    "JobSpec",
    "Listening",
    "Notify",
    "Plan",
    "SpecHead",
    "StepSpec",
    "decode_head",
    "decode_spec",
    "encode_spec",
    "step_spec",
]

NO_PARAMS = msgspec.Raw(b"{}")
JOBS_OWN = msgspec.Raw(b"null")


class StepSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step of a planned job. What is None is the job's own."""

    #: Empty in a fan-out that is no workflow: it has this one step.
    name: str = ""
    type: str = ""
    #: JSON in which `{"$result": "step.path"}` and `{"$file": "step/name"}` stand for what other
    #: steps made; `null`: the job's own params.
    params: msgspec.Raw = JOBS_OWN
    #: Steps that must have succeeded before, by name; those that params refer to are among them.
    needs: list[str] = []
    #: It is split into chunks; `join` says whether a task joins what they returned.
    fans_out: bool = False
    join: bool = False
    #: Chunks in line or running at once, and the share of them that may fail.
    at_once: int = 1_000
    tolerate: float = 0.0
    queue: str | None = None
    max_attempts: int | None = None
    timeout_s: float | None = None
    grace_s: float | None = None
    retry: RetryPolicy | None = None
    limits: list[str] | None = None
    resumable: bool = False


class Plan(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a job that has more than one task is run. No step needs one that comes after it."""

    steps: list[StepSpec]
    #: Whether steps that do not need a failed one still run.
    goes_on: bool = False
    #: The step whose result is the job's.
    result: str = ""


class Listening(msgspec.Struct, frozen=True, gc=False):
    """What decisions look at of a Notify."""

    #: Of `started`, `completed`, `failed`, `cancelled`.
    on: tuple[str, ...]


class SpecHead(msgspec.Struct, frozen=True, gc=False):
    """What every decision looks at, out of a JobSpec's bytes: the rest is passed over unread."""

    type: str
    tenant: str = "default"
    queue: str = "default"
    priority: int = 0
    run_at: float | None = None
    expires_at: float | None = None
    key: str | None = None
    key_expires_at: float = 0.0
    fingerprint: str = ""
    code: str = ""
    plan: Plan | None = None
    limits: tuple[str, ...] = ()
    expected_s: float | None = None
    routed: bool = False
    resumable: bool = False
    notify: tuple[Listening, ...] = ()
    tells_of: str | None = None


class JobSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """One job as its submitter wants it. Moments are epoch seconds, UTC."""

    type: str
    params: msgspec.Raw = NO_PARAMS
    #: Where params above the inline limit lie in the store; `params` is then empty.
    params_ref: str | None = None
    tenant: str = "default"
    queue: str = "default"
    #: Higher runs first.
    priority: int = 0
    #: Not before this moment.
    run_at: float | None = None
    #: Not after this moment: a job still unstarted then is cancelled, reason `expired`.
    expires_at: float | None = None
    timeout_s: float | None = None
    grace_s: float = 10.0
    max_attempts: int = 3
    retry: RetryPolicy = DEFAULT_RETRY
    labels: dict[str, str] = {}
    #: Hex hash of tenant and idempotency key, or None.
    key: str | None = None
    key_expires_at: float = 0.0
    #: Hash of what makes two requests the same; compared when `key` is seen again.
    fingerprint: str = ""
    #: W3C trace context of the submitter, kept so that later spans join it.
    traceparent: str | None = None
    #: The code that runs it (`cluster/code.py`); empty: what the cluster was started with.
    code: str = ""
    #: None: one task runs it.
    plan: Plan | None = None
    #: The job whose attempt submitted it.
    parent: str | None = None
    #: Keys of limits that its attempts count against.
    limits: tuple[str, ...] = ()
    #: How long it is said to run; None: nobody said.
    expected_s: float | None = None
    #: Nobody asked for its queue: a known long runner may wait in another.
    routed: bool = False
    #: It goes on from its checkpoint when it is stopped.
    resumable: bool = False
    #: The schedule that submitted it, and the moment it was due.
    schedule: str | None = None
    scheduled_for: float | None = None
    #: What is submitted when it has come so far.
    notify: list["Notify"] = []
    #: The job that it is a notification of.
    tells_of: str | None = None


class Notify(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job that is submitted when the one that asks for it has come so far."""

    #: Of `started`, `completed`, `failed`, `cancelled`.
    on: list[str]
    #: What it tells of becomes its param `event`.
    job: JobSpec


def step_spec(spec: JobSpec, step: StepSpec) -> JobSpec:
    """Return the spec as a step's tasks get it: the job's, with what the step says otherwise."""
    own = bytes(step.params) == b"null"
    return msgspec.structs.replace(
        spec,
        type=step.type or spec.type,
        params=spec.params if own else step.params,
        params_ref=spec.params_ref if own else None,
        queue=step.queue or spec.queue,
        timeout_s=spec.timeout_s if step.timeout_s is None else step.timeout_s,
        grace_s=spec.grace_s if step.grace_s is None else step.grace_s,
        max_attempts=step.max_attempts or spec.max_attempts,
        retry=step.retry or spec.retry,
        limits=spec.limits if step.limits is None else tuple(step.limits),
        resumable=step.resumable,
        plan=None,
        key=None,
        notify=[],
    )


decode_head = msgspec.json.Decoder(SpecHead).decode
decode_spec = msgspec.json.Decoder(JobSpec).decode
encode_spec = msgspec.json.Encoder().encode
