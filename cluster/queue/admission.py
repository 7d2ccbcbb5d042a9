"""Whether new work is taken, and which queue it waits in.

Rule 1: limits hold for what comes from outside; what the system makes for itself (chunks, retries,
jobs of handlers, ticks) is bounded by its parent and never refused. Rule 2: a tenant's own limit is
told apart from a full queue and a full system. Rule 3: only who named no queue is sent elsewhere.
"""

import msgspec

from cluster.queue.events import JobSubmitted
from cluster.queue.model import State, Usage
from cluster.queue.rules import NO_LIMITS, Rules, TenantLimits
from cluster.queue.spec import Plan, SpecHead, StepSpec, decode_head, decode_spec, encode_spec
from jobs.errors import InvalidInput, Overloaded

__all__ = ["check_room", "lane_of", "no_queue", "submitted", "tenant_limits"]

#: The queue of who names none, whatever it is called here.
DEFAULT = "default"
#: Told where nobody knows how fast room is made; whoever does, says better.
RETRY_AFTER_S = 5.0


def lane_of(state: State, rules: Rules, spec: SpecHead) -> str:
    """Return the queue of new work: where what it is known to take is allowed."""
    queue = spec.queue
    if queue == DEFAULT and (spec.routed or DEFAULT not in rules.queues):
        queue = rules.default_queue
    if not spec.routed or spec.plan is not None:
        return queue
    seen = {queue}
    while (limits := rules.queues.get(queue)) is not None and limits.max_run_s is not None:
        usual_s = spec.expected_s
        if usual_s is None and (learned := state.learned.get(spec.type)) is not None:
            usual_s = learned.usual_s
        if usual_s is None or usual_s <= limits.max_run_s or limits.then in seen:
            break
        queue = limits.then
        seen.add(queue)
    return queue


def submitted(state: State, rules: Rules, job_id: str, spec: SpecHead, raw: bytes) -> JobSubmitted:
    """Return the job as it is taken, in the queue that it waits in. Raises InvalidInput."""
    queue = lane_of(state, rules, spec)
    if queue not in rules.queues:
        raise no_queue(rules, "queue", queue)
    plan = None if spec.plan is None else _laned(rules, spec.plan)
    if queue != spec.queue or plan is not spec.plan:
        raw = encode_spec(msgspec.structs.replace(decode_spec(raw), queue=queue, plan=plan))
        spec = decode_head(raw)
    return JobSubmitted(job_id, spec, raw)


def _laned(rules: Rules, plan: Plan) -> Plan:
    """Return the plan with each step in a queue that there is. Raises InvalidInput."""
    moved: dict[int, StepSpec] = {}
    for at, step in enumerate(plan.steps):
        if step.queue is None or step.queue in rules.queues:
            continue
        if step.queue != DEFAULT:
            raise no_queue(rules, f"steps.{at}.queue", step.queue)
        moved[at] = msgspec.structs.replace(step, queue=rules.default_queue)
    if not moved:
        return plan
    steps = [moved.get(at, step) for at, step in enumerate(plan.steps)]
    return msgspec.structs.replace(plan, steps=steps)


def no_queue(rules: Rules, field: str, name: str) -> InvalidInput:
    """Return that there is no such queue, and which there are."""
    known = ", ".join(sorted(rules.queues))
    return InvalidInput(field, f"no queue {name!r}; use one of: {known}")


def tenant_limits(rules: Rules, tenant: str) -> TenantLimits:
    """Return the limits of a tenant."""
    tenants = rules.tenants
    if not tenants:
        return NO_LIMITS
    return tenants.get(tenant) or tenants.get("*") or NO_LIMITS


def check_room(state: State, rules: Rules, tenant: str, queue: str, size: int) -> None:
    """Raise Overloaded where a job of `size` bytes is too much."""
    own = tenant_limits(rules, tenant)
    if own is not NO_LIMITS:
        usage = state.usage.get(tenant) or Usage()
        _check("tenant", tenant, usage.jobs, usage.bytes + size, own.depth_max, own.bytes_max)
    limits, line = rules.queues[queue], state.lines.get(queue)
    if limits.draining:
        told = f"queue {queue!r} is drained: it takes nothing new"
        raise Overloaded("queue", told, RETRY_AFTER_S, queue)
    if line is not None:
        _check("queue", queue, line.depth, line.bytes + size, limits.depth_max, limits.bytes_max)
    total = state.total
    _check("system", "", total.jobs, total.bytes + size, rules.depth_max, rules.bytes_max)


def _check(
    scope: str, name: str, jobs: int, size: int, jobs_max: int | None, bytes_max: int | None
) -> None:
    if jobs_max is not None and jobs >= jobs_max:
        told = f"{_full(scope, name)}: {jobs_max:,} unfinished jobs"
        raise Overloaded(scope, told, RETRY_AFTER_S, name, jobs_max)
    if bytes_max is not None and size > bytes_max:
        told = f"{_full(scope, name)}: its unfinished jobs take {bytes_max:,} bytes"
        raise Overloaded(scope, told, RETRY_AFTER_S, name, bytes_max, "bytes")


def _full(scope: str, name: str) -> str:
    return f"{scope} {name!r} is full" if name else "the system is full"
