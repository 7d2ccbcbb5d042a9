"""What is taken in, and what is refused because there is too much of it."""

from typing import Any

import pytest

from cluster.queue import commands as c
from cluster.queue.rules import QueueLimits, Rules, TenantLimits
from cluster.queue.spec import Plan, SpecHead, StepSpec, encode_spec
from jobs.errors import Overloaded
from tests.support.builders import Rulebook, a_job, a_spec, canonical

SIZE = len(encode_spec(a_spec(tenant="t")))


def refused(book: Rulebook, job_id: str = "refused", **changes: object) -> Overloaded:
    before = canonical(book.state)
    with pytest.raises(Overloaded) as caught:
        book.do(a_job(job_id, **changes))
    assert canonical(book.state) == before
    assert caught.value.retry_after_s > 0
    return caught.value


def rules(
    queue: QueueLimits | None = None, tenants: dict[str, TenantLimits] | None = None, **more: Any
) -> Rules:
    queues = {"default": queue or QueueLimits(), "io": QueueLimits()}
    return Rules(queues, tenants or {}, **more)


@pytest.mark.parametrize("name", ["t", "*"])
def test_a_tenant_that_has_too_many_jobs_is_told_that_it_is_its_own_limit(name: str) -> None:
    book = Rulebook(rules(tenants={name: TenantLimits(depth_max=2)}))
    book.submit("a", tenant="t")
    book.submit("b", tenant="t", queue="io")  # all queues count

    error = refused(book, tenant="t")

    assert (error.scope, error.name, error.quota, error.unit) == ("tenant", "t", 2, "jobs")
    book.submit("of another", tenant="u")


def test_a_tenant_of_its_own_name_is_not_held_to_what_others_are() -> None:
    tenants = {"*": TenantLimits(depth_max=1), "t": TenantLimits()}
    book = Rulebook(rules(tenants=tenants))

    book.submit("a", "b", "c", tenant="t")

    assert refused_or_not(book, "u") == [True, False, False]


def refused_or_not(book: Rulebook, tenant: str) -> list[bool]:
    found = []
    for n in range(3):
        try:
            found.append(bool(book.do(a_job(f"{tenant}{n}", tenant=tenant))))
        except Overloaded:
            found.append(False)
    return found


def test_bytes_of_a_tenant_a_queue_and_the_system_are_bounded() -> None:
    by_tenant = Rulebook(rules(tenants={"t": TenantLimits(bytes_max=2 * SIZE)}))
    by_queue = Rulebook(rules(QueueLimits(bytes_max=2 * SIZE)))
    by_system = Rulebook(rules(bytes_max=2 * SIZE))
    for book, scope in ((by_tenant, "tenant"), (by_queue, "queue"), (by_system, "system")):
        book.submit("a", "b", tenant="t")
        error = refused(book, tenant="t")
        assert (error.scope, error.unit, error.quota) == (scope, "bytes", 2 * SIZE)


def test_a_full_system_refuses_whatever_the_queue() -> None:
    book = Rulebook(rules(depth_max=2))
    book.submit("a", "b")

    error = refused(book, queue="io")

    assert (error.scope, error.name, error.quota) == ("system", "", 2)


def test_whoever_ends_makes_room() -> None:
    book = Rulebook(rules(tenants={"t": TenantLimits(depth_max=1)}))
    for n, end in enumerate(("ok", "discarded", "cancel")):
        token = book.running(f"{n}", tenant="t")
        refused(book, tenant="t")
        if end == "cancel":
            book.cancel(f"{n}")
            refused(book, tenant="t")  # it runs still
            book.finish(token, "stopped")
        else:
            book.finish(token, end)  # type: ignore[arg-type]

    assert book.state.usage == {}
    assert (book.state.total.jobs, book.state.total.bytes) == (0, 0)
    assert book.state.lines["default"].bytes == 0


def test_a_drained_queue_takes_nothing_new_and_is_done() -> None:
    book = Rulebook(rules(QueueLimits(draining=True)))
    book.do(c.Submit("a", *submitted(), admitted=True))

    error = refused(book)

    assert (error.scope, error.name) == ("queue", "default")
    assert book.lease("w1")


def submitted() -> tuple[SpecHead, bytes]:
    command = a_job("a")
    return command.spec, command.raw


def test_a_queue_that_is_drained_is_refused_before_anything_was_in_it() -> None:
    book = Rulebook(rules(QueueLimits(draining=True)))

    assert refused(book).scope == "queue"


def test_what_was_acknowledged_before_is_never_refused() -> None:
    book = Rulebook(rules(QueueLimits(depth_max=1), {"*": TenantLimits(depth_max=1)}, depth_max=1))
    for n in range(3):
        command = a_job(f"{n}")
        assert book.do(c.Submit(f"{n}", command.spec, command.raw, admitted=True))


def test_chunks_take_no_room_from_outside() -> None:
    book = Rulebook(rules(QueueLimits(depth_max=2)))
    book.submit("f", plan=Plan([StepSpec(fans_out=True)]))

    book.submit("b")

    assert refused(book).scope == "queue"


def test_a_redriven_job_counts_again_and_is_not_refused() -> None:
    book = Rulebook(rules(tenants={"t": TenantLimits(depth_max=1)}))
    token = book.running("dead", tenant="t")
    book.finish(token, "discarded")
    book.submit("a", tenant="t")

    book.do(c.Revive("dead"))

    assert book.state.usage["t"].jobs == 2
    assert refused(book, tenant="t").scope == "tenant"
    assert canonical(book.replayed()) == canonical(book.state)


def test_a_job_that_is_sent_to_another_queue_has_to_have_room_there() -> None:
    queues = {
        "fast": QueueLimits(depth_max=1, max_run_s=1.0, then="slow"),
        "slow": QueueLimits(depth_max=1),
    }
    book = Rulebook(Rules(queues))
    book.submit("in fast", queue="fast")

    book.submit("long", queue="fast", routed=True, expected_s=9.0)

    error = refused(book, queue="fast", routed=True, expected_s=9.0)
    assert (error.scope, error.name) == ("queue", "slow")
