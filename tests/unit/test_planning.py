"""From steps to a plan: what is wrong is named by its place, what is right is in order."""

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.catalog import StepCard, TypeCard, card_of
from cluster.planning import (
    PROBLEMS_MAX,
    STEPS_MAX,
    Problem,
    dig,
    plan_fan_out,
    plan_for,
    plan_steps,
    references,
    replaced,
)
from cluster.queue.spec import Plan
from jobs import Context, fan_out, job
from jobs.definition import JobDefinition
from jobs.retry import RetryPolicy
from jobs.workflow import param, workflow


class Source(BaseModel):
    model_config = ConfigDict(extra="forbid")
    source: str
    year: int = 2026


class Pages(BaseModel):
    model_config = ConfigDict(extra="forbid")
    table: str
    rows: int = 1
    options: dict[str, Any] = {}
    names: list[str] = []


class Rendered(BaseModel):
    pages: list[str]
    cost: float


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")


@job("plan.fetch", queue="io", max_attempts=7, timeout_s=60)
def fetch(ctx: Context, params: Source) -> None: ...


@job("plan.render")
def render(ctx: Context, params: Pages) -> Rendered: ...


@job("plan.any")
def anything(ctx: Context, params: Anything) -> Any: ...


def split(ctx: Context, params: Pages) -> list[int]: ...


@fan_out("plan.chunks", split=split, at_once=9, tolerate=0.25, max_attempts=4)
def chunks(ctx: Context, params: Pages, chunk: int) -> int: ...


inner = workflow("plan.inner", Source)
inner.step("a", fetch, {"source": param("source")})

TYPES: dict[str, JobDefinition] = {d.name: d for d in (fetch, render, anything, chunks, inner)}


def known(name: str) -> TypeCard | None:
    return card_of(TYPES[name]) if name in TYPES else None


def problems_of(name: str, params: bytes) -> list[Problem]:
    try:
        TYPES[name].params_model.model_validate_json(params)
    except ValidationError as error:
        return [(".".join(map(str, ("params", *e["loc"]))), e["msg"]) for e in error.errors()]
    return []


def a_step(
    name: str, type: str = "plan.any", params: Any = None, *after: str, **more: Any
) -> StepCard:
    raw = msgspec.Raw(msgspec.json.encode({} if params is None else params))
    return StepCard(name, type, raw, list(after), **more)


def planned(*steps: StepCard, params: Any = None, **more: Any) -> tuple[Plan, list[Problem]]:
    return plan_steps(
        list(steps),
        params=params or {},
        card_of=known,
        problems_of=problems_of,
        values_of=lambda name, raw: msgspec.json.decode(raw),
        **more,
    )


def names(plan: Plan) -> list[str]:
    return [step.name for step in plan.steps]


FETCH = a_step("fetch", "plan.fetch", {"source": "s3://a"})
RENDER = a_step("r", "plan.render", {"table": "t"})
CHUNKS = a_step("c", "plan.chunks", {"table": "t"})
FILE = {"x": {"$file": "a"}}


@pytest.mark.parametrize("kind", ["$result", "$file"])
def test_a_param_is_never_taken_for_a_reference(kind: str) -> None:
    step = a_step("b", "plan.any", {"x": {"$param": "note"}})

    _, problems = planned(a_step("a"), step, params={"note": {"deep": [{kind: "a"}]}})

    told = f"the param 'note' holds a {kind}, which stands for what a step made; pass other data"
    assert problems == [("steps.1.params.x.deep.0", told)]


def test_of_many_wrong_names_the_first_are_told_with_what_may_be_meant() -> None:
    stem = "a" * 40
    steps = [a_step(f"{stem}{n:04}", "plan.any", {"x": [{"$result": f"{stem}x{n}"}] * 3})
             for n in range(STEPS_MAX)]  # fmt: skip

    _, problems = planned(*steps)

    assert len(problems) == PROBLEMS_MAX
    assert problems[0][1].startswith(f"there is no step '{stem}x0'; there is {stem}0")
    assert problems[-1][1].startswith("there is no step")
    assert "there is aaa" not in problems[-1][1]


# --- what is wrong ----------------------------------------------------------------------------

WRONG: dict[str, tuple[list[StepCard], dict[str, Any], list[tuple[str, str]]]] = {
    "none": ([], {}, [("steps", "are none")]),
    "too many": (
        [a_step(f"s{n}") for n in range(STEPS_MAX + 1)],
        {},
        [("steps", "are 1,001, 1,000 at most")],
    ),
    "bad name": ([a_step("Fetch it")], {}, [("steps.0.name", "'Fetch it': use a-z")]),
    "no name": ([a_step("")], {}, [("steps.0.name", "'': use a-z")]),
    "dotted name": ([a_step("a.b")], {}, [("steps.0.name", "'a.b'")]),
    "same name": (
        [a_step("a"), a_step("b"), a_step("a")],
        {},
        [("steps.2.name", "'a' is the name of an earlier step")],
    ),
    "unknown type": ([a_step("a", "plan.no")], {}, [("steps.0.type", "no job type 'plan.no'")]),
    "a workflow as a step": (
        [FETCH, a_step("a", "plan.inner", {"source": "x"})],
        {},
        [("steps.1.type", "'plan.inner' is a workflow itself")],
    ),
    "after what is not there": (
        [FETCH, a_step("b", "plan.any", {}, "fetch", "fetsh")],
        {},
        [("steps.1.after.1", "there is no step 'fetsh'; there is fetch")],
    ),
    "no such result": (
        [FETCH],
        {"result": "render"},
        [("result", "there is no step 'render'; there is fetch")],
    ),
    "no such param": (
        [a_step("a", "plan.fetch", {"source": param("report.sauce")})],
        {"params": {"report": {"source": "x"}}},
        [("steps.0.params.source", "there is no param 'report.sauce'")],
    ),
    "no such param deep down": (
        [a_step("a", "plan.any", {"mails": [{"to": "x"}, {"to": param("too")}]})],
        {},
        [("steps.0.params.mails.1.to", "there is no param 'too'")],
    ),
    "refers to no step": (
        [FETCH, a_step("b", "plan.any", {"x": [{"$result": "fetsh.rows"}]})],
        {},
        [("steps.1.params.x.0", "there is no step 'fetsh'; there is fetch")],
    ),
    "a file without its name": (
        [FETCH, a_step("b", "plan.any", {"x": {"$file": "fetch"}})],
        {},
        [("steps.1.params.x", "'fetch': write it as step/name")],
    ),
    "a file in a folder": (
        [FETCH, a_step("b", "plan.any", {"x": {"$file": "fetch/a/b"}})],
        {},
        [("steps.1.params.x", "'fetch/a/b': write it as step/name")],
    ),
    "a part that is not returned": (
        [RENDER, a_step("b", params={"x": {"$result": "r.page"}})],
        {},
        [("steps.1.params.x", "plan.render returns no 'page'; it returns cost, pages")],
    ),
    "a part of a fan-out without join": (
        [CHUNKS, a_step("b", params={"x": {"$result": "c.rows"}})],
        {},
        [("steps.1.params.x", "plan.chunks returns no 'rows'; it returns chunks")],
    ),
    "params that do not fit": (
        [a_step("a", "plan.fetch", {"source": 7, "yeer": 1})],
        {},
        [("steps.0.params.source", "valid string"), ("steps.0.params.yeer", "not permitted")],
    ),
    "params that lack one": (
        [a_step("a", "plan.fetch")],
        {},
        [("steps.0.params.source", "required")],
    ),
    "params that are no object": (
        [a_step("a", params=[1])],
        {},
        [("steps.0.params", "JSON object")],
    ),
    "a param that does not fit": (
        [a_step("a", "plan.fetch", {"source": param("n")})],
        {"params": {"n": 7}},
        [("steps.0.params.source", "valid string")],
    ),
    "several at once": (
        [a_step("a", "plan.no"), a_step("b", "plan.fetch"), a_step("c", params=FILE)],
        {},
        [("steps.0.type", ""), ("steps.1.params.source", ""), ("steps.2.params.x", "")],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_by_its_place(case: str) -> None:
    steps, more, expected = WRONG[case]

    plan, problems = planned(*steps, **more)

    assert plan.steps == []
    assert [path for path, _ in problems] == [path for path, _ in expected]
    for (_, told), (_, wanted) in zip(problems, expected, strict=True):
        assert wanted in told


def test_a_circle_of_steps_is_named() -> None:
    steps = [
        a_step("a", "plan.any", {}, "c"),
        a_step("b", "plan.any", {"x": {"$result": "a"}}),
        a_step("c", "plan.any", {"x": {"$file": "b/out.csv"}}),
        a_step("d"),
    ]

    plan, [(where, told)] = planned(*steps)

    assert (plan.steps, where) == ([], "steps")
    assert told.startswith("wait for each other: ")
    ring = told.removeprefix("wait for each other: ").split(" -> ")
    assert len(ring) == 4
    assert ring[0] == ring[-1]
    assert set(ring) == {"a", "b", "c"}


def test_a_step_that_waits_for_itself_is_a_circle() -> None:
    for step in (a_step("a", "plan.any", {}, "a"), a_step("a", params={"x": {"$result": "a"}})):
        _, problems = planned(step)
        assert problems == [("steps", "wait for each other: a -> a")]


# --- what is right ----------------------------------------------------------------------------


def test_steps_stand_in_an_order_in_which_none_needs_a_later_one() -> None:
    plan, problems = planned(
        a_step("mail", "plan.any", {"pages": {"$result": "render.pages"}}, "audit"),
        a_step("render", "plan.render", {"table": {"$file": "fetch/t.parquet"}}),
        a_step("audit"),
        FETCH,
    )

    assert problems == []
    assert names(plan).index("fetch") < names(plan).index("render") < names(plan).index("mail")
    needs = {step.name: step.needs for step in plan.steps}
    assert needs == {"mail": ["audit", "render"], "render": ["fetch"], "audit": [], "fetch": []}
    # As declared, not as ordered.
    assert plan.result == "fetch"


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32), st.floats(0, 0.6))
def test_any_steps_without_a_circle_are_ordered(count: int, seed: int, density: float) -> None:
    rng = random.Random(seed)
    order = [f"s{n}" for n in range(count)]
    steps = []
    for at, name in enumerate(order):
        earlier = [one for one in order[:at] if rng.random() < density]
        after = [one for one in earlier if rng.random() < 0.5]
        used = [
            {"$result": one} if rng.random() < 0.5 else {"$file": f"{one}/f"} for one in earlier
        ]
        steps.append(a_step(name, "plan.any", {"used": used}, *after))
    rng.shuffle(steps)

    plan, problems = planned(*steps)

    assert problems == []
    places = {name: place for place, name in enumerate(names(plan))}
    assert sorted(places) == sorted(order)
    assert all(places[need] < places[s.name] for s in plan.steps for need in s.needs)
    assert all(len(set(s.needs)) == len(s.needs) for s in plan.steps)


def test_params_of_the_workflow_are_filled_in_and_those_of_other_steps_are_not() -> None:
    given_params = {"report": {"year": 2024, "to": ["ann", "bob"]}, "n": None}
    template = {
        "table": {"$file": "fetch/t.parquet"},
        "rows": param("report.year"),
        "names": param("report.to"),
        "options": {
            "first": param("report.to.0"),
            "all": param(),
            "none": param("n"),
            "plain": "$n",
        },
    }

    plan, problems = planned(FETCH, a_step("r", "plan.render", template), params=given_params)

    assert problems == []
    assert msgspec.json.decode(plan.steps[1].params) == {
        "table": {"$file": "fetch/t.parquet"},
        "rows": 2024,
        "names": ["ann", "bob"],
        "options": {"first": "ann", "all": given_params, "none": None, "plain": "$n"},
    }


def test_what_only_looks_like_a_reference_stays_as_it_is() -> None:
    odd = {"$param": "x", "more": 1}, {"$result": 7}, {"$file": ["a"]}, {"$other": "a"}

    plan, problems = planned(a_step("a", params={"odd": list(odd)}))

    assert problems == []
    assert msgspec.json.decode(plan.steps[0].params) == {"odd": list(odd)}
    assert plan.steps[0].needs == []


def test_a_reference_may_stand_where_a_type_wants_anything() -> None:
    """What is not known yet cannot be checked; what stands beside it is."""
    one = a_step("r", "plan.render", {"table": {"$file": "fetch/t"}, "rows": "many"})
    two = a_step(
        "r", "plan.render", {"table": {"$result": "fetch"}, "names": [{"$result": "fetch"}]}
    )

    assert [path for path, _ in planned(FETCH, one)[1]] == ["steps.1.params.rows"]
    assert planned(FETCH, two)[1] == []


def test_limits_are_the_steps_own_or_else_its_types() -> None:
    policy = RetryPolicy(base_s=9)
    plan, _ = planned(
        FETCH,
        a_step("again", "plan.fetch", {"source": "x"}, queue="q", max_attempts=2, timeout_s=3.0,
               retry=policy),
        a_step("many", "plan.chunks", {"table": "t"}),
        goes_on=True,
        result="again",
    )  # fmt: skip

    first, again, many = plan.steps
    assert (first.queue, first.max_attempts, first.timeout_s) == ("io", 7, 60)
    assert (again.queue, again.max_attempts, again.timeout_s, again.retry) == ("q", 2, 3.0, policy)
    assert (first.fans_out, first.join) == (False, False)
    assert (many.fans_out, many.join, many.at_once, many.tolerate) == (True, False, 9, 0.25)
    assert (many.max_attempts, many.timeout_s) == (4, None)
    assert (plan.goes_on, plan.result) == (True, "again")


def test_a_fan_out_by_itself_leaves_all_limits_to_its_job() -> None:
    [step] = plan_fan_out(card_of(chunks)).steps

    assert (step.name, step.type, bytes(step.params)) == ("", "", b"null")
    assert (step.fans_out, step.join, step.at_once, step.tolerate) == (True, False, 9, 0.25)
    own = (step.queue, step.max_attempts, step.timeout_s, step.grace_s, step.retry)
    assert own == (None,) * 5


def test_a_type_gives_the_plan_of_its_kind() -> None:
    def plan(definition: JobDefinition, params: Any) -> tuple[Plan | None, list[Problem]]:
        return plan_for(
            card_of(definition),
            params,
            card_of=known,
            problems_of=problems_of,
            values_of=lambda *_: {},
        )

    assert plan(fetch, {"source": "x"}) == (None, [])
    assert plan(chunks, {"table": "t"}) == (plan_fan_out(card_of(chunks)), [])
    found, problems = plan(inner, Source(source="s").model_dump(mode="json"))
    assert problems == []
    assert found is not None
    assert msgspec.json.decode(found.steps[0].params) == {"source": "s"}
    assert plan(inner, {})[1] == [("steps.0.params.source", "there is no param 'source'")]


def test_a_plan_survives_the_journal() -> None:
    plan, _ = planned(FETCH, a_step("many", "plan.chunks", {"table": {"$file": "fetch/t"}}))

    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan


# --- references and paths ---------------------------------------------------------------------


def test_references_are_found_with_their_places() -> None:
    template = {"a": {"$result": "x.0"}, "b": [1, {"c": {"$file": "y/f"}}], "d": {"$param": "p"}}

    assert list(references(template, "params")) == [
        ("params.a", "$result", "x.0"),
        ("params.b.1.c", "$file", "y/f"),
    ]
    assert list(references({"$result": "x"}, "params")) == [("params", "$result", "x")]


def test_references_are_replaced_and_what_replaces_them_is_not_looked_into() -> None:
    template = {"a": {"$result": "x"}, "b": [{"$file": "y/f"}, {"$result": 1}], "c": "$result"}

    found = replaced(template, lambda kind, target: {"$result": f"{kind} {target}"})

    assert found == {
        "a": {"$result": "$result x"},
        "b": [{"$result": "$file y/f"}, {"$result": 1}],
        "c": "$result",
    }
    assert template["a"] == {"$result": "x"}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("", {"rows": [{"id": 7}], "0": "zero", "": "empty"}),
        ("rows", [{"id": 7}]),
        ("rows.0", {"id": 7}),
        ("rows.0.id", 7),
        ("0", "zero"),
    ],
)
def test_a_part_of_a_result_is_found_by_its_path(path: str, found: Any) -> None:
    assert dig({"rows": [{"id": 7}], "0": "zero", "": "empty"}, path) == found


@pytest.mark.parametrize(
    ("value", "path", "part"),
    [
        ({"rows": []}, "rows.0", "0"),
        ({"rows": [1]}, "rows.-1", "-1"),
        ({"rows": [1]}, "rows.x", "x"),
        ({"rows": [1]}, "rows.²", "²"),
        ({"rows": 1}, "rows.0", "0"),
        ({}, "a.b", "a"),
        (None, "a", "a"),
        ("text", "0", "0"),
    ],
)
def test_a_part_that_is_not_there_is_named(value: Any, path: str, part: str) -> None:
    with pytest.raises(KeyError) as raised:
        dig(value, path)
    assert raised.value.args == (part,)


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(), inside, max_size=3),
    max_leaves=12,
)


@settings(deadline=None)
@given(json)
def test_what_has_no_reference_is_left_alone(value: Any) -> None:
    if not list(references(value, "params")):
        assert replaced(value, lambda kind, target: pytest.fail(kind)) == value
