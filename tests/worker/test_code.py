"""Attempts that name a bundle: each runs the code it was submitted with, whatever else runs."""

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.bundle import make_bundle
from cluster.code import CodeStore
from cluster.store.local import LocalObjects
from cluster.worker.keeper import CODE_FOLDER
from cluster.worker.slot import Patience
from cluster.worker.worker import WorkerTimes
from tests.support.eventually import eventually, written

SHOP = """\
import asyncio, os
from jobs import Context, job
from pydantic import BaseModel
from shop_words import WORD

class Order(BaseModel):
    begun: str = ""
    opened: str = ""

@job("shop.word")
def word(ctx: Context, params: Order) -> list:
    return [WORD, os.getpid()]

@job("shop.wait")
async def wait(ctx: Context, params: Order) -> str:
    open(params.begun, "w").close()
    while not os.path.exists(params.opened):
        await asyncio.sleep(0.01)
    return WORD
"""
BROKEN = "import no_such_thing\n"
DEADLY = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
TIMES = WorkerTimes(heartbeat_s=0.5, patience=Patience(code_s=0.2, code_idle_s=0.3))
IMPATIENT = WorkerTimes(heartbeat_s=0.5, patience=Patience(backlog_s=0.3))
HANGS = "import time\ntime.sleep(3600)\n"
#: Comes up, when the test lets it.
SLOW = "import os, time\nwhile not os.path.exists({path!r}):\n    time.sleep(0.01)\n"

Put = Callable[..., str]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Put a version of the shop into the worker's store; return its hash."""
    store = CodeStore(LocalObjects(tmp_path / "store"))

    def put_shop(word: str, source: str = "") -> str:
        folder = tmp_path / f"src-{word}"
        folder.mkdir()
        (folder / "shop.py").write_text(SHOP)
        (folder / "shop_words.py").write_text(f"WORD = {word!r}\n")
        bundle = make_bundle(["shop"], [str(folder)])
        data = bundle.data
        if source:
            # As on a machine that lacks something the submitter's has: the card was made elsewhere.
            (folder / "shop.py").write_text(source)
            data = remade(bundle.card, folder)
        return store.put(data)[0]

    return put_shop


def remade(card: Any, folder: Path) -> bytes:
    from cluster.code import pack

    return pack(card, {p.name: (p.read_bytes(), False) for p in folder.glob("*.py")})


async def test_a_bundle_runs_beside_the_cluster_s_own_types(
    start: Any, put: Put, result: Any
) -> None:
    bench = await start()
    sha = put("v1")

    theirs = await bench.manager.outcome(bench.manager.submit("shop.word", code=sha))
    ours = await bench.manager.outcome(bench.manager.submit("test.about"))
    both = await bench.manager.outcome(bench.manager.submit("test.about", code=sha))

    assert result(theirs)[0] == "v1"
    assert result(ours)["pid"] != result(theirs)[1]
    assert both.kind == "ok"


async def test_two_versions_of_one_module_run_one_after_the_other(
    start: Any, put: Put, result: Any
) -> None:
    bench = await start()
    versions = {word: put(word) for word in ("v1", "v2")}
    order = ["v1", "v2", "v1", "v1", "v2"]

    tokens = [bench.manager.submit("shop.word", code=versions[word]) for word in order]
    outcomes = await bench.manager.all_outcomes(tokens)

    assert [result(outcome)[0] for outcome in outcomes] == order


async def test_versions_in_turn_keep_their_children(start: Any, put: Put, result: Any) -> None:
    bench = await start()
    versions = {word: put(word) for word in ("v1", "v2")}
    pids: dict[str, set[int]] = {word: set() for word in versions}

    for word in ["v1", "v2"] * 5:
        outcome = await bench.manager.outcome(
            bench.manager.submit("shop.word", code=versions[word])
        )
        pids[word].add(result(outcome)[1])

    assert [len(of_word) for of_word in pids.values()] == [1, 1]
    assert len(bench.slots) == 1  # the other stands aside


async def test_several_children_share_the_versions(start: Any, put: Put, result: Any) -> None:
    bench = await start(concurrency=3)
    versions = {word: put(word) for word in ("v1", "v2")}
    order = ["v1", "v2"] * 40

    tokens = [bench.manager.submit("shop.word", code=versions[word]) for word in order]
    tokens += [bench.manager.submit("test.noop") for _ in range(40)]
    outcomes = await bench.manager.all_outcomes(tokens)

    assert [result(outcome)[0] for outcome in outcomes[: len(order)]] == order
    pids = {result(outcome)[1] for outcome in outcomes[: len(order)]}
    assert len(pids) < 20  # they run in batches, and not in a child each


async def test_versions_run_side_by_side_in_an_async_worker(
    start: Any, put: Put, result: Any, tmp_path: Path
) -> None:
    bench = await start(mode="async", concurrency=10, times=TIMES)
    versions = {word: put(word) for word in ("v1", "v2")}
    opened = tmp_path / "opened"
    tokens = {
        word: bench.manager.submit(
            "shop.wait",
            {"begun": str(tmp_path / f"begun-{word}"), "opened": str(opened)},
            code=sha,
        )
        for word, sha in versions.items()
    }
    for word in versions:
        await written(tmp_path / f"begun-{word}")
    own = await bench.manager.outcome(bench.manager.submit("test.async_ok", {"seconds": 0.0}))

    opened.touch()
    outcomes = {word: await bench.manager.outcome(token) for word, token in tokens.items()}

    assert own.kind == "ok"
    assert {word: result(outcome) for word, outcome in outcomes.items()} == {
        "v1": "v1",
        "v2": "v2",
    }
    await eventually(lambda: [slot.code for slot in bench.slots] == [""])


async def test_a_suspect_runs_alone_with_its_code(start: Any, put: Put, result: Any) -> None:
    bench = await start(mode="async", concurrency=10)

    outcome = await bench.manager.outcome(
        bench.manager.submit("shop.word", code=put("v1"), alone=True)
    )

    assert result(outcome)[0] == "v1"
    await eventually(lambda: [(slot.code, slot.solo) for slot in bench.slots] == [("", False)])


async def test_other_code_waits_a_bounded_time_behind_a_line_that_never_ends(
    start: Any, put: Put, result: Any
) -> None:
    bench = await start(times=TIMES)
    bench.manager.eager = True
    tokens = [bench.manager.submit("test.sleep", {"seconds": 0.02}) for _ in range(100)]
    theirs = bench.manager.submit("shop.word", code=put("v1"))
    later = [bench.manager.submit("test.sleep", {"seconds": 0.02}) for _ in range(10)]

    outcome = await bench.manager.outcome(theirs, within_s=20)
    await bench.manager.all_outcomes(tokens)
    last = (await bench.manager.all_outcomes(later))[-1]
    assert outcome.kind == "ok"
    assert outcome.ended_at < last.ended_at


@pytest.mark.parametrize("mode", ["process", "async"])
async def test_a_bundle_that_cannot_be_imported_is_discarded_and_harms_nobody(
    start: Any, put: Put, mode: str
) -> None:
    bench = await start(mode=mode)
    sha = put("v1", BROKEN)

    broken = [bench.manager.submit("shop.word", code=sha) for _ in range(3)]
    ours = [bench.manager.submit("test.noop") for _ in range(3)]
    outcomes = await bench.manager.all_outcomes(broken)

    assert {outcome.kind for outcome in outcomes} == {"discarded"}
    assert "module 'shop' cannot be imported: ModuleNotFoundError" in outcomes[0].error
    assert "no_such_thing" in outcomes[0].error
    assert {o.kind for o in await bench.manager.all_outcomes(ours)} == {"ok"}
    assert [slot.code for slot in bench.slots] == [""]


@pytest.mark.parametrize("mode", ["process", "async"])
async def test_code_whose_import_hangs_holds_up_nobody_and_is_charged(
    start: Any, put: Put, mode: str
) -> None:
    patience = Patience(backlog_s=0.5, ready_s=3.0)
    times = WorkerTimes(heartbeat_s=0.5, patience=patience)
    bench = await start(mode=mode, times=times)
    warm = bench.manager.submit("test.noop")
    await bench.manager.outcome(warm)
    sha = put("v1", HANGS)

    hang = bench.manager.submit("shop.word", code=sha)
    ours = [bench.manager.submit("test.noop") for _ in range(3)]
    others = await bench.manager.all_outcomes(ours)
    put_off = await bench.manager.outcome(hang)
    again = await bench.manager.outcome(bench.manager.submit("shop.word", code=sha))
    verdicts = [again]
    while verdicts[-1].kind == "snoozed":
        verdicts.append(await bench.manager.outcome(bench.manager.submit("shop.word", code=sha)))

    assert {outcome.kind for outcome in others} == {"ok"}
    assert (put_off.kind, put_off.cause) == ("snoozed", "")
    assert put_off.error == "the import of the job's code takes long: over 0.5 s"
    assert (verdicts[-1].kind, verdicts[-1].cause) == ("failed", "not ready")
    assert verdicts[-1].error == "the import of the job's code took over 3 s"


async def test_code_whose_import_takes_long_runs_once_it_is_up(
    start: Any, put: Put, result: Any, tmp_path: Path
) -> None:
    times = WorkerTimes(heartbeat_s=0.5, patience=Patience(backlog_s=0.3))
    bench = await start(times=times)
    opened = tmp_path / "opened"
    sha = put("v1", SLOW.format(path=str(opened)) + SHOP)

    first = await bench.manager.outcome(bench.manager.submit("shop.word", code=sha))
    opened.touch()
    outcome = first
    while outcome.kind == "snoozed":
        outcome = await bench.manager.outcome(bench.manager.submit("shop.word", code=sha))

    assert first.kind == "snoozed"
    assert result(outcome)[0] == "v1"


async def test_code_whose_child_was_let_go_while_it_came_up_gets_another(
    start: Any, put: Put, result: Any, tmp_path: Path
) -> None:
    times = WorkerTimes(heartbeat_s=0.5, patience=Patience(backlog_s=0.3))
    bench = await start(times=times)
    opened = tmp_path / "opened"
    sha = put("v1", SLOW.format(path=str(opened)) + SHOP)
    first = await bench.manager.outcome(bench.manager.submit("shop.word", code=sha))
    children = bench.worker._executor._children
    [coming] = children.aside
    children._close(coming)
    opened.touch()

    outcome = first
    while outcome.kind != "ok":
        outcome = await bench.manager.outcome(bench.manager.submit("shop.word", code=sha))

    assert first.kind == "snoozed"
    assert result(outcome)[0] == "v1"


@pytest.mark.parametrize("mode", ["process", "async"])
async def test_a_bundle_whose_import_kills_the_process_fails_its_own_attempt(
    start: Any, put: Put, mode: str
) -> None:
    bench = await start(mode=mode)

    deadly = bench.manager.submit("shop.word", code=put("v1", DEADLY))
    ours = bench.manager.submit("test.noop")
    outcome = await bench.manager.outcome(deadly)

    assert (outcome.kind, outcome.cause) == ("failed", "signal 11")
    assert "while it imported the job's code" in outcome.error
    assert (await bench.manager.outcome(ours)).kind == "ok"


async def test_code_that_is_not_in_the_store_is_discarded(start: Any, put: Put) -> None:
    bench = await start()

    outcome = await bench.manager.outcome(bench.manager.submit("shop.word", code="0" * 64))

    assert outcome.kind == "discarded"
    assert "no code '0000" in outcome.error


async def test_damaged_code_is_discarded_and_never_imported(start: Any, put: Put) -> None:
    bench = await start()
    sha = put("v1")
    path = bench.store / f"code/{sha}.zip"
    path.write_bytes(path.read_bytes().replace(b"v1", b"v9"))

    outcome = await bench.manager.outcome(bench.manager.submit("shop.word", code=sha))

    assert outcome.kind == "discarded"
    assert "not the bytes that its name stands for" in outcome.error


async def test_while_the_store_is_away_the_attempt_is_given_back(
    start: Any, put: Put, result: Any
) -> None:
    bench = await start(times=IMPATIENT)
    sha = put("v1")
    code, aside = bench.store / f"code/{sha}.zip", bench.store / "aside"
    code.rename(aside)
    code.symlink_to(code)  # reading it fails, and not because it is not there

    missed = await bench.manager.outcome(bench.manager.submit("shop.word", code=sha))
    aside.replace(code)  # at once: where it is not there at all, the code is broken for a while
    found = missed
    while found.kind != "ok":  # so impatient, it also puts off what a slow child is for
        found = await bench.manager.outcome(bench.manager.submit("shop.word", code=sha))

    assert missed.kind == "returned"
    assert result(found)[0] == "v1"


async def test_code_whose_files_were_cleaned_away_is_fetched_again(
    start: Any, put: Put, result: Any
) -> None:
    bench = await start()
    sha = put("v1")
    await bench.manager.outcome(bench.manager.submit("shop.word", code=sha))
    await bench.manager.outcome(bench.manager.submit("test.noop"))
    folder = bench.worker._scratch / CODE_FOLDER / sha
    folder.rename(folder.with_name("gone"))

    outcome = await bench.manager.outcome(bench.manager.submit("shop.word", code=sha))

    assert result(outcome)[0] == "v1"


async def test_children_with_code_turn_back_when_idle(start: Any, put: Put) -> None:
    bench = await start(times=TIMES)

    await bench.manager.outcome(bench.manager.submit("shop.word", code=put("v1")))

    await eventually(lambda: bench.slot.code == "" and bench.slot.is_ready)


async def test_a_crash_in_one_version_leaves_the_line_of_another(
    start: Any, put: Put, result: Any
) -> None:
    bench = await start()
    sha = put("v1")
    crash = bench.manager.submit("test.signal", {"n": 11}, code=sha)
    after = bench.manager.submit("shop.word", code=sha)

    assert (await bench.manager.outcome(crash)).kind == "crashed"
    assert result(await bench.manager.outcome(after))[0] == "v1"


async def test_nothing_of_the_code_is_left_when_a_worker_ends(start: Any, put: Put) -> None:
    bench = await start()
    await bench.manager.outcome(bench.manager.submit("shop.word", code=put("v1")))
    scratch = bench.worker._scratch
    assert (scratch / CODE_FOLDER).exists()

    await bench.close()

    assert not scratch.exists()


def test_the_last_keeper_of_a_dead_worker_removes_its_code(tmp_path: Path) -> None:
    scratch = tmp_path / "drayman-w1-x"
    slots = [scratch / "slot-a", scratch / "slot-b"]
    for folder in (*slots, scratch / CODE_FOLDER / "sha"):
        folder.mkdir(parents=True)
    keepers = [KeeperOf(folder) for folder in slots]

    keepers[0].worker_dies()
    assert (scratch / CODE_FOLDER).exists()
    keepers[1].worker_dies()

    assert not scratch.exists()


class KeeperOf:
    """A keeper, held by this process as by a worker."""

    def __init__(self, slot: Path) -> None:
        self._ours, theirs = socket.socketpair()
        fd = theirs.fileno()
        subprocess.run(
            [sys.executable, "-m", "cluster.worker.keeper", str(fd), str(slot), "60"],
            pass_fds=[fd],
            check=True,
        )
        theirs.close()
        assert b"up" in self._ours.recv(4096)

    def worker_dies(self) -> None:
        """Close the socket, and return when the keeper has ended."""
        self._ours.shutdown(socket.SHUT_WR)
        while self._ours.recv(4096):
            pass
        self._ours.close()


OVER = """\
from jobs import Context, job
from pydantic import BaseModel

class Nothing(BaseModel):
    pass

@job("test.noop")
def noop(ctx: Context, params: Nothing) -> str:
    return "the bundle's"
"""


async def test_a_bundle_s_type_wins_over_one_the_cluster_was_started_with(
    start: Any, tmp_path: Path, result: Any
) -> None:
    bench = await start()
    (tmp_path / "over.py").write_text(OVER)
    bundle = make_bundle(["over"], [str(tmp_path)])
    CodeStore(LocalObjects(tmp_path / "store")).put(bundle.data)

    theirs = await bench.manager.outcome(bench.manager.submit("test.noop", code=bundle.sha))
    beside = await bench.manager.outcome(bench.manager.submit("test.about", code=bundle.sha))
    ours = await bench.manager.outcome(bench.manager.submit("test.noop"))

    assert result(theirs) == "the bundle's"
    assert (beside.kind, result(ours)) == ("ok", None)
