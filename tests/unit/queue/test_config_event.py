"""A config that an operator set: what of it the rules keep, and who may change it."""

import msgspec
import pytest

from cluster.queue import commands as c
from cluster.queue import events as e
from cluster.queue.rules import Limit
from cluster.queue.snapshot import dump, load
from jobs.errors import Conflict
from tests.support.builders import Rulebook, canonical

LIMITS = {"api": Limit(rate=2.0, burst=3), "user:*": Limit(concurrency=1)}


def a_config(text: bytes = b'{"a":1}', run: str = "r", revision: int | None = None) -> c.Configure:
    return c.Configure(text, run, {"t": 2.0}, LIMITS, revision)


def test_a_config_is_kept_byte_for_byte_with_the_event_that_set_it(book: Rulebook) -> None:
    book.submit("before")

    events = book.do(a_config())

    assert events == [e.ConfigSet(msgspec.Raw(b'{"a":1}'), "r", {"t": 2.0}, LIMITS)]
    state = book.state
    assert (state.config, state.config_run, state.config_seq) == (b'{"a":1}', "r", state.seq)
    assert (state.limits, state.shares.weights) == (LIMITS, {"t": 2.0})
    assert canonical(book.replayed()) == canonical(state)


def test_the_same_config_again_changes_nothing(book: Rulebook) -> None:
    book.do(a_config())

    assert book.do(a_config()) == []
    assert book.do(a_config(run="another"))


def test_a_config_made_from_one_that_holds_no_more_is_refused(book: Rulebook) -> None:
    book.do(a_config(revision=0))
    first = book.state.config_seq
    book.submit("meanwhile")
    book.do(a_config(b'{"a":2}', revision=first))

    with pytest.raises(Conflict, match="read it again"):
        book.do(a_config(b'{"a":3}', revision=first))

    assert book.state.config == b'{"a":2}'


def test_a_config_survives_a_snapshot_with_all_that_waits(book: Rulebook) -> None:
    book.do(a_config())
    book.submit(*"abcdef", limits=("api", "user:1"), tenant="t")
    book.lease("w1", 2)
    rows = list(dump(book.state))

    loaded = load(rows)

    assert list(dump(loaded)) == rows
    assert canonical(loaded) == canonical(book.state)
    assert loaded.shares.cost("t") == 0.5


def test_weights_alone_leave_what_waits_where_it_is(book: Rulebook) -> None:
    book.do(a_config())
    book.submit(*"abcd", limits=("user:1",))
    before = [task.job.id for side in book.state.gates["user:1"].sides.values()
              for _, task in side.in_turn()]  # fmt: skip

    book.do(c.Configure(b"{}", "r", {"t": 9.0}, LIMITS))

    after = [task.job.id for side in book.state.gates["user:1"].sides.values()
             for _, task in side.in_turn()]  # fmt: skip
    assert after == before == ["b", "c", "d"]
