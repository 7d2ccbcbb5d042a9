"""Which job types there are, for whoever accepts jobs: those imported here, and deployed ones.

Rule 1: the code of a deployed type is never imported here: its card says all there is to know, and
its JSON Schema checks params. Rule 2: what is known is looked up in memory; the store is asked at
most once in `AGED_S`, beside the requests, and before them only if it was not for `STALE_S` or if
they name something unknown. Rule 3: a store that is away takes no known type away.
"""

import asyncio
import difflib
import time
from collections import ChainMap, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec
import structlog
from pydantic import BaseModel, ValidationError

from cluster.catalog import TypeCard, card_of
from cluster.code import SHA, BundleCard, CodeStore, Deployed, read_bundle
from cluster.planning import TYPES_SHOWN, no_type
from cluster.store.contract import Objects
from jobs import library
from jobs.definition import JobDefinition
from jobs.errors import Corrupt, DraymanError, InvalidInput, NotFound
from service.problems import FieldError, InvalidRequest

__all__ = ["Catalog", "KnownType"]

log = structlog.get_logger(__name__)

#: What was read so long ago is read again, beside the request that asks.
AGED_S = 1.0
#: What was read so long ago is not good enough: the request waits.
STALE_S = 2.0
#: Bundles whose cards are kept although nobody deployed them, for jobs that name one: more than the
#: lines of a batch that are looked at together can name.
BUNDLES_KEPT = 1_000
ERRORS_MAX = 50
#: What comes with Drayman.
BUILTIN = [getattr(library, name) for name in library.__all__]


class KnownType(msgspec.Struct, frozen=True):
    """A job type as submissions need it: everything resolved that can be."""

    card: TypeCard
    #: The hash of its bundle; empty for a type that is imported here.
    code: str
    #: Takes params, JSON in UTF-8, and returns them parsed. Raises InvalidRequest naming fields.
    check: Callable[[bytes], Any]
    #: Takes what `check` returned, and the names of some params (None: all of them); returns these
    #: as plain data with defaults filled in.
    plain: Callable[[Any, set[str] | None], dict[str, Any]]
    #: Whether it comes with Drayman, and no other code is deployed for it.
    builtin: bool = False


class Catalog(Mapping[str, KnownType]):
    """Every type that can be submitted, by name, as of the last look into the store."""

    def __init__(self, started: Mapping[str, JobDefinition], objects: Objects) -> None:
        """`started`: the types that the cluster was started with, imported in this process."""
        self._started = {name: _started(started[name]) for name in started}
        self._store, self._deployed = CodeStore(objects), Deployed(objects)
        #: Those of `_started`, and over them what is deployed.
        self._types: dict[str, KnownType] = dict(self._started)
        self._bundles: OrderedDict[str, dict[str, KnownType]] = OrderedDict()
        self._revision = 0
        self._looked_s = -STALE_S - 1.0
        self._looking: asyncio.Task[None] | None = None

    def __getitem__(self, name: str) -> KnownType:
        return self._types[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._types)

    def __len__(self) -> int:
        return len(self._types)

    @property
    def deployed(self) -> dict[str, str]:
        """Hash of the bundle that runs each deployed type, as of the last look."""
        return dict(self._deployed.revision.types)

    @property
    def revision(self) -> int:
        """Number of the deployment that this shows."""
        return self._revision

    # --- looking up ---------------------------------------------------------------------------

    def find(self, name: str, code: str | None = None) -> KnownType:
        """Return the type, from what is in memory (see `learn`); InvalidInput if there is none.

        `code` is the hash of a bundle, empty for what the cluster was started with; None: whatever
        is deployed.
        """
        known = self.types(code)
        found = known.get(name)
        if found is not None:
            return found
        if code is None:
            raise InvalidInput("type", no_type(name, known))
        where = f"in the code {code[:12]}" if code else "among those the cluster was started with"
        near = difflib.get_close_matches(name[:100], known, n=1)
        some = ", ".join(sorted(known)[:TYPES_SHOWN])
        told = f"did you mean {near[0]!r}?" if near else f"there is {some or 'none'}"
        raise InvalidInput("type", f"no job type {name[:100]!r} {where}; {told}")

    def types(self, code: str | None = None) -> Mapping[str, KnownType]:
        """Return the types that `find` looks among; InvalidInput for code that is not kept."""
        if code is None:
            return self._types
        if not code:
            return self._started
        if code not in self._bundles:
            raise InvalidInput(
                "code", f"no code {code[:100]!r} is kept here; send it with PUT /v1/code"
            )
        return self._bundles[code]

    def scope(self, code: str) -> Mapping[str, KnownType]:
        """Return every type that a child with this code knows: what its tasks may be of.

        Those of the bundle, and those the cluster was started with whose names it leaves free;
        deployed types of other bundles are not among them. The bundle must be known (see `learn`).
        """
        return ChainMap(self._bundles[code], self._started) if code else self._started

    def needs(self, name: str, code: str | None) -> bool:
        """Whether `learn` is to be awaited before `find`. Starts a look into the store if due."""
        age_s = time.monotonic() - self._looked_s
        if age_s > AGED_S:
            if age_s > STALE_S:
                return True
            self._look()
        return not self.knows(name, code)

    def knows(self, name: str, code: str | None) -> bool:
        """Whether what is in memory says if there is such a type."""
        return name in self._types if code is None else not (code and self._is_new(code))

    def _is_new(self, code: str) -> bool:
        return code not in self._bundles and SHA.fullmatch(code) is not None

    async def learn(self, requests: Iterable[tuple[str, str | None]]) -> None:
        """Look into the store, as far as these (name, code) need it; what is not there is not.

        Raises Unavailable if the store is away and something is not known without it.
        """
        wanted = list(requests)

        def is_missing() -> bool:
            return any(code is None and name not in self._types for name, code in wanted)

        under_way = self._looking is not None and not self._looking.done()
        try:
            await asyncio.shield(self._look())
            if under_way and is_missing():  # what began before may have missed what came since
                await asyncio.shield(self._look())
        except DraymanError as error:
            if is_missing():
                raise
            log.warning("catalog.not_read", error=str(error), next="it goes on with what it knows")
        for code in {code for _, code in wanted if code and self._is_new(code)}:
            try:
                self._keep(code, await asyncio.to_thread(self._read, code))
            except NotFound:
                pass  # `find` says so, each time it is asked for.

    def _look(self) -> "asyncio.Task[None]":
        """Begin to look into the store, unless that is under way."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._read_deployed())
            # It may be that nobody waits for it; who does is told by the task.
            self._looking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._looking

    async def _read_deployed(self) -> None:
        began_s = time.monotonic()
        await asyncio.to_thread(self._deployed.current)
        revision = self._deployed.revision
        if revision.number != self._revision:
            await self._take(revision.types, revision.number)
        self._looked_s = began_s

    async def _take(self, deployed: dict[str, str], number: int) -> None:
        types = dict(self._started)
        for code in sorted(set(deployed.values())):
            bundle = self._bundles.get(code)
            if bundle is None:
                try:
                    bundle = await asyncio.to_thread(self._read, code)
                except (NotFound, Corrupt) as error:
                    # One lost bundle must not take the others' types away.
                    log.error("catalog.code_lost", code=code, error=str(error))
                    continue
                self._keep(code, bundle)
            types |= {n: t for n, t in bundle.items() if deployed.get(n) == code}
        if number > self._revision:
            self._types, self._revision = types, number

    def _read(self, code: str) -> dict[str, KnownType]:
        try:
            return bundle_types(code, self._store.card(code))
        except InvalidInput as error:
            raise Corrupt(f"code/{code}.json", str(error)) from error

    def _keep(self, code: str, bundle: dict[str, KnownType]) -> None:
        self._bundles[code] = bundle
        used = set(self._deployed.revision.types.values())
        surplus = [kept for kept in self._bundles if kept not in used][:-BUNDLES_KEPT]
        for old in surplus:
            del self._bundles[old]

    # --- changing -----------------------------------------------------------------------------

    async def put(self, data: bytes) -> tuple[str, BundleCard]:
        """Keep a bundle; return its hash and card. InvalidInput says what is wrong with it."""

        def put() -> tuple[str, BundleCard, dict[str, KnownType]]:
            types = bundle_types("", read_bundle(data))
            sha, card = self._store.put(data)
            known = {n: msgspec.structs.replace(t, code=sha) for n, t in types.items()}
            return sha, card, known

        sha, card, known = await asyncio.to_thread(put)
        self._keep(sha, known)
        return sha, card

    async def card(self, code: str) -> BundleCard:
        """Return the card of a bundle. Raises NotFound."""
        return await asyncio.to_thread(self._store.card, code)

    async def deploy(self, code: str, names: list[str] | None = None) -> list[str]:
        """Run new jobs with this bundle: those of all its types, or of these; return which.

        An empty `code` gives these back to what the cluster was started with. Raises NotFound for
        a bundle that is not kept, InvalidInput for a type that it does not have.
        """
        if not code:
            await asyncio.to_thread(self._deployed.withdraw, names or [])
        else:
            card = await self.card(code)
            there = [kind.name for kind in card.types]
            if wrong := sorted(set(names or ()) - set(there)):
                raise InvalidInput("types", f"this code has no {', '.join(wrong)[:200]}")
            names = names or there
            await asyncio.to_thread(self._deployed.deploy, code, names)
        await self.learn([])
        return sorted(names or [])


# --- one type ---------------------------------------------------------------------------------


def _started(definition: JobDefinition) -> KnownType:
    validate = definition.params_model.__pydantic_validator__.validate_json

    def check(params: bytes) -> Any:
        try:
            return validate(params)
        except ValidationError as error:
            raise InvalidRequest(
                [
                    FieldError(".".join(["params", *map(str, found["loc"])]), found["msg"])
                    for found in error.errors(include_url=False, include_input=False)[:ERRORS_MAX]
                ]
            ) from None

    builtin = any(definition is one for one in BUILTIN)
    return KnownType(card_of(definition), "", check, _dumped, builtin)


def _dumped(checked: BaseModel, names: set[str] | None) -> dict[str, Any]:
    return checked.model_dump(mode="json", include=names)


def bundle_types(code: str, card: BundleCard) -> dict[str, KnownType]:
    """Return the types of a bundle. Raises InvalidInput for a schema that is none."""
    return {kind.name: _deployed(code, kind) for kind in card.types}


def _deployed(code: str, card: TypeCard) -> KnownType:
    import jsonschema_rs

    try:
        schema = msgspec.json.decode(card.schema, type=dict[str, Any])
        # Offline: what somebody wrote into a schema is no reason to fetch anything. The limit keeps
        # a pattern from being evaluated for ever.
        validator: Any = jsonschema_rs.validator_for(
            schema,
            offline=True,
            validate_formats=False,
            pattern_options=jsonschema_rs.FancyRegexOptions(
                backtrack_limit=100_000, size_limit=1 << 20
            ),
        )
    except (ValueError, TypeError, msgspec.MsgspecError) as error:
        reason = str(error).partition("\n")[0][:500]
        raise InvalidInput("code", f"type {card.name}: its params schema: {reason}") from None
    properties = schema.get("properties")
    defaults = {
        name: known["default"]
        for name, known in (properties.items() if isinstance(properties, dict) else ())
        if isinstance(known, dict) and "default" in known
    }

    def check(params: bytes) -> Any:
        try:
            value = msgspec.json.decode(params)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest([FieldError("params", f"is not JSON: {error}")]) from None
        if not isinstance(value, dict):
            raise InvalidRequest([FieldError("params", "must be a JSON object")])
        if not validator.is_valid(value):
            raise InvalidRequest(_errors(validator, value))
        return value

    def plain(value: dict[str, Any], names: set[str] | None) -> dict[str, Any]:
        whole = defaults | value
        return whole if names is None else {n: whole[n] for n in names if n in whole}

    return KnownType(card, code, check, plain)


def _errors(validator: Any, value: Any) -> list[FieldError]:
    found = []
    for error in validator.iter_errors(value):
        field = ".".join(["params", *map(str, error.instance_path)])
        found.append(FieldError(field[:200], error.message[:500]))
        if len(found) == ERRORS_MAX:
            break
    return found
