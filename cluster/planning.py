"""From a job type, or the steps that were posted, to the Plan of one job.

Rule 1: what can be known to be wrong is found before the job exists, and named by its place: an
unknown step or type, a cycle, a reference to what is not there, params that a type refuses.
Rule 2: the plan has every step's limits resolved and its params filled in as far as the job's own
are known, so running it needs no look at any type's declaration. Rule 3: steps stand in an order
in which none needs a later one.
"""

import difflib
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

import msgspec

from cluster.catalog import StepCard, TypeCard, limit_keys
from cluster.queue.spec import JOBS_OWN, Plan, StepSpec
from jobs.workflow import STEP_NAME

__all__ = [
    "PROBLEMS_MAX",
    "STEPS_MAX",
    "TYPES_SHOWN",
    "Problem",
    "dig",
    "no_type",
    "plan_fan_out",
    "plan_for",
    "plan_steps",
    "references",
    "replaced",
]

STEPS_MAX = 1_000
#: Problems that are told, and of how many of them it is told what may have been meant: to find that
#: out takes longer than all else, and whoever posts a workflow must not hold up the others.
PROBLEMS_MAX, HINTS_MAX = 50, 5
#: Names that are compared with a wrong one, its neighbours in the alphabet.
NEIGHBOURS = 8
#: Job types that are listed where none is like the one that was asked for.
TYPES_SHOWN = 10

#: Where something is wrong, and what.
Problem = tuple[str, str]


def plan_fan_out(card: TypeCard) -> Plan:
    """Return the plan of a job of a type that fans out."""
    return Plan([_step(card, StepCard("", ""), JOBS_OWN, [])])


def plan_for(
    card: TypeCard,
    params: Any,
    *,
    card_of: Callable[[str], TypeCard | None],
    problems_of: Callable[[str, bytes], list[Problem]],
    values_of: Callable[[str, bytes], Mapping[str, Any]],
) -> tuple[Plan | None, list[Problem]]:
    """Return the plan of a job of this type, None if one task runs it; see `plan_steps`."""
    if card.kind == "job":
        return None, []
    if card.kind == "fan_out":
        return plan_fan_out(card), []
    return plan_steps(
        card.steps,
        params=params,
        card_of=card_of,
        problems_of=problems_of,
        values_of=values_of,
        goes_on=card.goes_on,
        result=card.result,
    )


def plan_steps(
    steps: Sequence[StepCard],
    *,
    params: Any,
    card_of: Callable[[str], TypeCard | None],
    problems_of: Callable[[str, bytes], list[Problem]],
    values_of: Callable[[str, bytes], Mapping[str, Any]],
    goes_on: bool = False,
    result: str = "",
    known: Collection[str] = (),
) -> tuple[Plan, list[Problem]]:
    """Return the plan of a workflow, and what is wrong with it; with problems it is no plan.

    Args:
        params: What `$param` finds: the workflow's own params as JSON data, defaults included.
        card_of: The type of a name, or None.
        problems_of: What a type has against params (JSON); paths begin with `params`.
        values_of: What a type reads from params (JSON) that it has nothing against.
        result: The step whose result is the job's; the last one if empty.
        known: Names of types, among which one that is wrong is looked for.
    """
    problems = _problems_of_shape(steps, result)
    if problems:
        return Plan([]), problems
    names = [step.name for step in steps]
    types = {step.name: step.type for step in steps}
    planned: dict[str, StepSpec] = {}
    for at, step in enumerate(steps):
        if len(problems) >= PROBLEMS_MAX:
            break
        where = f"steps.{at}"
        card = card_of(step.type)
        if card is None or card.kind == "workflow":
            hints = known if len(problems) < HINTS_MAX else ()
            problems.append((f"{where}.type", _not_a_step(step.type, card, hints)))
            continue
        missing: list[Problem] = []
        own = f"{where}.params"
        try:
            data = msgspec.json.decode(step.params)
        except msgspec.DecodeError as error:  # such as 1e999
            problems.append((own, f"cannot be read: {error}"))
            continue
        template = _with_params(data, params, own, missing)
        problems += missing
        needs = dict.fromkeys(step.after)
        for path, kind, target in references(template, own):
            name, told = _target(kind, target, types, len(problems) < HINTS_MAX)
            if name is None:
                problems.append((path, told))
                if len(problems) >= PROBLEMS_MAX:
                    break
            else:
                needs[name] = None
                problems += _refused_path(path, kind, target, card_of(types[name]))
        unknown = [path for path, _ in missing]
        problems += _refused_params(step.type, template, where, unknown, problems_of)
        encoded = msgspec.Raw(msgspec.json.encode(template))
        keys: tuple[str, ...] = ()
        if card.limits and not problems:
            known_now = next(references(template, own), None) is None
            keys = limit_keys(
                card.limits, values_of(step.type, bytes(encoded)) if known_now else template
            )
        planned[step.name] = _step(card, step, encoded, list(needs), keys)
    if problems:
        return Plan([]), problems
    try:
        order = TopologicalSorter(
            {n: dict.fromkeys(planned[n].needs) for n in names}
        ).static_order()
        ordered = [planned[name] for name in order]
    except CycleError as error:
        return Plan([]), [("steps", f"wait for each other: {' -> '.join(error.args[1])}")]
    return Plan(ordered, goes_on, result or names[-1]), []


def _problems_of_shape(steps: Sequence[StepCard], result: str) -> list[Problem]:
    if not steps:
        return [("steps", "are none; a workflow has at least one")]
    if len(steps) > STEPS_MAX:
        told = f"are {len(steps):,}, {STEPS_MAX:,} at most; put what is alike into a fan-out"
        return [("steps", told)]
    problems: list[Problem] = []
    names: set[str] = set()
    for at, step in enumerate(steps):
        if not STEP_NAME.fullmatch(step.name):
            told = f"{step.name!r}: use a-z, 0-9 and '_', led by a letter, 63 at most"
            problems.append((f"steps.{at}.name", told))
        elif step.name in names:
            problems.append((f"steps.{at}.name", f"{step.name!r} is the name of an earlier step"))
        names.add(step.name)
    for at, step in enumerate(steps):
        for place, name in enumerate(step.after):
            if name not in names and len(problems) < PROBLEMS_MAX:
                told = _no_step(name, names, len(problems) < HINTS_MAX)
                problems.append((f"steps.{at}.after.{place}", told))
    if result and result not in names:
        problems.append(("result", _no_step(result, names)))
    return problems


def _no_step(name: str, names: Collection[str], hint: bool = True) -> str:
    told = f"there is no step {name[:100]!r}"
    if not hint:
        return told
    ordered = sorted(names)
    at = bisect_left(ordered, name)
    beside = ordered[max(0, at - NEIGHBOURS) : at + NEIGHBOURS]
    near = difflib.get_close_matches(name[:100], beside, n=1) or ordered[:10]
    return f"{told}; there is {', '.join(near)}"


def no_type(name: str, known: Collection[str]) -> str:
    """Return that there is no such job type here, what may have been meant, and how to bring it."""
    near = difflib.get_close_matches(name[:100], known, n=1)
    if near:
        told = f"did you mean {near[0]!r}? If not,"
    else:
        some = ", ".join(sorted(known)[:TYPES_SHOWN])
        more = ", and more" if len(known) > TYPES_SHOWN else ""
        told = f"there is {some}{more};" if some else "`GET /v1/types` lists them;"
    bring = "bring yours with drayman submit --jobs MODULE, or drayman deploy MODULE"
    return f"no job type {name[:100]!r} here; {told} {bring}"


def _not_a_step(name: str, card: TypeCard | None, known: Collection[str]) -> str:
    if card is None:
        return no_type(name, known)
    return f"{name!r} is a workflow itself, which is no step; name its steps, or use ctx.submit"


def _step(
    card: TypeCard,
    step: StepCard,
    params: msgspec.Raw,
    needs: list[str],
    limits: tuple[str, ...] = (),
) -> StepSpec:
    fans_out = card.kind == "fan_out"
    named = bool(step.name)
    return StepSpec(
        name=step.name,
        type=step.type,
        params=params,
        needs=needs,
        fans_out=fans_out,
        join=card.join,
        at_once=card.at_once,
        tolerate=card.tolerate,
        # A fan-out by itself has what the job says, which has its type's defaults already.
        queue=(step.queue or card.queue) if named else None,
        max_attempts=(step.max_attempts or card.max_attempts) if named else None,
        timeout_s=(step.timeout_s or card.timeout_s) if named else None,
        grace_s=card.grace_s if named else None,
        retry=(step.retry or card.retry) if named else None,
        limits=list(limits) if named else None,
        resumable=card.resumable,
    )


# --- references -------------------------------------------------------------------------------


def references(value: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Yield (path, `$result` or `$file`, target) of every reference in a template."""
    if isinstance(value, dict):
        found = _reference(value)
        if found is not None:
            yield path, *found
            return
        for key, item in value.items():
            yield from references(item, f"{path}.{key}")
    elif isinstance(value, list):
        for at, item in enumerate(value):
            yield from references(item, f"{path}.{at}")


def _reference(value: dict[str, Any]) -> tuple[str, str] | None:
    if len(value) == 1:
        ((kind, target),) = value.items()
        if kind in ("$result", "$file") and isinstance(target, str):
            return kind, target
    return None


def replaced(value: Any, what: Callable[[str, str], Any]) -> Any:
    """Return a template with every reference replaced by `what(kind, target)`."""
    if isinstance(value, dict):
        found = _reference(value)
        if found is not None:
            return what(*found)
        return {key: replaced(item, what) for key, item in value.items()}
    if isinstance(value, list):
        return [replaced(item, what) for item in value]
    return value


def dig(value: Any, path: str) -> Any:
    """Return the part of JSON data at a path (`rows.0.id`; empty for all). KeyError names it."""
    for part in path.split(".") if path else ():
        if isinstance(value, list) and _is_number(part) and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        else:
            raise KeyError(part)
    return value


def _is_number(text: str) -> bool:
    """Whether it is a place in a list: `int` takes more, and fails at what `isdigit` takes."""
    return text.isascii() and text.isdecimal() and len(text) < 10


def _with_params(value: Any, params: Any, path: str, problems: list[Problem]) -> Any:
    """Return a template with every `$param` replaced."""
    if isinstance(value, dict):
        if set(value) == {"$param"} and isinstance(value["$param"], str):
            try:
                found = dig(params, value["$param"])
            except KeyError:
                problems.append((path, f"there is no param {value['$param']!r}"))
                return None
            # Whoever submits a job says what its params are, not what its steps wait for.
            if (inner := next(references(found, path), None)) is not None:
                told = f"holds a {inner[1]}, which stands for what a step made; pass other data"
                problems.append((inner[0], f"the param {value['$param']!r} {told}"))
                return None
            return found
        return {
            key: _with_params(item, params, f"{path}.{key}", problems)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [
            _with_params(item, params, f"{path}.{at}", problems) for at, item in enumerate(value)
        ]
    return value


def _target(kind: str, target: str, names: Collection[str], hint: bool) -> tuple[str | None, str]:
    """Return the step that a reference names, or None and why not."""
    name, _, rest = target.partition("." if kind == "$result" else "/")
    if name not in names:
        return None, _no_step(name, names, hint)
    if kind == "$file" and (not rest or "/" in rest):
        return None, f"{target!r}: write it as step/name"
    return name, ""


def _refused_path(path: str, kind: str, target: str, card: TypeCard | None) -> list[Problem]:
    """Return what is wrong with the part of a result that is asked for, where that is known."""
    first = target.partition(".")[2].partition(".")[0]
    if kind != "$result" or not first or card is None or card.result_fields is None:
        return []
    if first in card.result_fields:
        return []
    known = ", ".join(card.result_fields)
    return [(path, f"{card.name} returns no {first!r}; it returns {known}")]


def _refused_params(
    kind: str,
    template: Any,
    where: str,
    unknown: list[str],
    problems_of: Callable[[str, bytes], list[Problem]],
) -> list[Problem]:
    """Return what the type has against the params, but for what is not known (yet)."""
    if not isinstance(template, dict):
        return [(f"{where}.params", "must be a JSON object")]
    later = [path for path, _, _ in references(template, f"{where}.params")]
    open_paths = [path.removeprefix(f"{where}.") for path in (*later, *unknown)]
    known = msgspec.json.encode(replaced(template, lambda _kind, _target: None))
    return [
        (f"{where}.{path}", reason)
        for path, reason in problems_of(kind, known)
        if not any(path == one or path.startswith(f"{one}.") for one in open_paths)
    ]
