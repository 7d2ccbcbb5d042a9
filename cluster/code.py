"""Users' code on a running cluster: bundles of modules, kept in the store under their hash.

    code/<sha256>.zip               the bundle: `card.json`, and the modules beneath `code/`
    code/<sha256>.json              its card alone: which job types it holds
    code/deployed/<revision>.json   which bundle runs each deployed type; the newest revision counts

Rule 1: a bundle never changes, so a job that names one by its hash runs the same code next year.
Rule 2: nothing here imports what is in a bundle; only a worker's child does. Rule 3: what comes out
of the store is compared with its hash before it is used. Rule 4: members are stored, not
compressed: the same files give the same bytes whatever zlib is there, and none grows when unpacked.
"""

import hashlib
import inspect
import io
import os
import re
import shutil
import stat
import sys
import uuid
import zipfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from cluster.catalog import TypeCard, card_of
from cluster.store.contract import Objects
from jobs.definition import NAME, JobDefinition
from jobs.errors import Conflict, Corrupt, InvalidInput, NotFound
from jobs.fan_out import FanOut
from jobs.workflow import Workflow

__all__ = [
    "CARD",
    "CODE_BYTES_MAX",
    "FOLDER",
    "RESERVED",
    "SHA",
    "BundleCard",
    "CodeStore",
    "Deployed",
    "Revision",
    "Unpacked",
    "check_module",
    "fingerprint",
    "pack",
    "read_bundle",
    "unpack",
]

CODE_BYTES_MAX = 50 << 20
FILES_MAX = 10_000
CARD, FOLDER = "card.json", "code/"
PREFIX, DEPLOYED = "code/", "code/deployed/"
SHA = re.compile(r"[0-9a-f]{64}")
#: Drayman's own packages: a child has them imported already, so a bundle's would never be seen.
RESERVED = frozenset({"jobs", "cluster", "service"})
#: A writer that was overtaken by so many others between its look and its write would be mistaken.
REVISIONS_KEPT = 100

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_QUEUE = re.compile(r"[a-z][a-z0-9_-]{0,62}")
#: Zip knows no time before this one.
_EPOCH = (1980, 1, 1, 0, 0, 0)


class BundleCard(msgspec.Struct, frozen=True):
    """What a bundle says of itself."""

    #: What a child imports to find the types.
    modules: list[str]
    types: list[TypeCard]


class Unpacked(msgspec.Struct, frozen=True):
    """A bundle on a machine's disk."""

    sha: str
    #: What goes in front of `sys.path`.
    path: Path
    modules: list[str]


_encode = msgspec.json.Encoder().encode
_decode_card = msgspec.json.Decoder(BundleCard).decode


# --- the bundle -------------------------------------------------------------------------------


def check_module(name: str) -> str:
    """Return the name if a bundle may have a module of it; InvalidInput says why not."""
    top = name.partition(".")[0]
    if not _MODULE.fullmatch(name):
        raise InvalidInput("code", f"{name[:100]!r} is no name of a module; write it as in import")
    if top in RESERVED or top in sys.stdlib_module_names:
        raise InvalidInput(
            "code", f"module {name!r}: {top!r} is Python's or Drayman's own name; rename yours"
        )
    return name


def pack(card: BundleCard, files: Mapping[str, tuple[bytes, bool]]) -> bytes:
    """Return the bundle of `files`, path -> (data, executable): always the same for the same."""
    data = io.BytesIO()
    members = {FOLDER + path: content for path, content in files.items()}
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as bundle:
        for path, (content, executable) in [
            (CARD, (_encode(card), False)),
            *sorted(members.items()),
        ]:
            info = zipfile.ZipInfo(path, _EPOCH)
            info.create_system = 3  # Unix, also where this runs elsewhere
            info.external_attr = (stat.S_IFREG | (0o755 if executable else 0o644)) << 16
            bundle.writestr(info, content)
    return data.getvalue()


def read_bundle(data: bytes) -> BundleCard:
    """Return the card of a bundle in which nothing is wrong; InvalidInput says what is."""
    if len(data) > CODE_BYTES_MAX:
        raise InvalidInput("code", f"a bundle may have {CODE_BYTES_MAX:,} bytes, got {len(data):,}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as bundle:
            names = [_checked(member) for member in bundle.infolist()]
            if len(set(names)) < len(names):
                raise InvalidInput("code", "two files of the bundle have one name")
            if CARD not in names:
                raise InvalidInput("code", f"the bundle has no {CARD}; make it with drayman deploy")
            if broken := bundle.testzip():
                raise InvalidInput("code", f"{broken[:100]!r} in the bundle is damaged")
            card = _decode_card(bundle.read(CARD))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise InvalidInput("code", f"the bundle is no zip that can be read: {error}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidInput("code", f"{CARD} of the bundle cannot be read: {error}") from None
    _check_card(card, names)
    return card


def _checked(member: zipfile.ZipInfo) -> str:
    name, kind = member.filename, stat.S_IFMT(member.external_attr >> 16)
    path = PurePosixPath(name)
    # What the name was before zipfile cut it at a NUL or turned separators, if it did.
    plain = member.orig_filename == name and not any(ord(c) < 32 or c in "\\:" for c in name)
    if not plain or path.is_absolute() or ".." in path.parts or str(path) != name:
        raise InvalidInput("code", f"{name[:100]!r} in the bundle leads out of it, or is no path")
    if name != CARD and not name.startswith(FOLDER):
        raise InvalidInput("code", f"{name[:100]!r}: files of a bundle lie in {FOLDER}")
    if kind not in (0, stat.S_IFREG):
        raise InvalidInput("code", f"{name[:100]!r} in the bundle is a link or no file")
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        raise InvalidInput("code", f"{name[:100]!r} is compressed; members of a bundle are stored")
    return name


def _check_card(card: BundleCard, names: list[str]) -> None:
    if len(names) > FILES_MAX:
        raise InvalidInput("code", f"a bundle may have {FILES_MAX:,} files, got {len(names):,}")
    if not card.modules or not card.types:
        raise InvalidInput("code", "the bundle holds no job type; declare one with @job(...)")
    tops = {name.removeprefix(FOLDER).partition("/")[0] for name in names}
    for module in card.modules:
        top = check_module(module).partition(".")[0]
        if not tops & {top, f"{top}.py"}:
            raise InvalidInput("code", f"module {module!r} is not in the bundle")
    known: set[str] = set()
    for kind in card.types:
        if not NAME.fullmatch(kind.name) or kind.name in known:
            raise InvalidInput("code", f"type {kind.name[:100]!r} is there twice, or no name")
        known.add(kind.name)
        if not _QUEUE.fullmatch(kind.queue):
            raise InvalidInput(
                "code",
                f"type {kind.name}: queue {kind.queue[:100]!r}: use 1 to 63 of a-z, 0-9, '-', '_', "
                "led by a letter",
            )
        limits = (kind.timeout_s, kind.grace_s, kind.unique_for_s)
        if kind.max_attempts < 1 or any(limit is not None and limit < 0 for limit in limits):
            raise InvalidInput("code", f"type {kind.name}: a limit is below what it can be")


# --- in the store -----------------------------------------------------------------------------


class CodeStore:
    """The bundles in one store. Blocking: call it from a thread."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def put(self, data: bytes) -> tuple[str, BundleCard]:
        """Keep a bundle, durably; return its hash and card. InvalidInput says what is wrong."""
        card = read_bundle(data)
        sha = hashlib.sha256(data).hexdigest()
        # The card comes last: where it is, the bundle is too.
        self._objects.put_if_absent(_zip_path(sha), data)
        self._objects.put_if_absent(_card_path(sha), _encode(card))
        return sha, card

    def get(self, sha: str) -> bytes:
        """Return the bundle. Raises NotFound, or Corrupt if it is not what was put."""
        path = _zip_path(sha)
        try:
            data = self._objects.get(path)
        except NotFound:
            raise NotFound("code", sha) from None
        if hashlib.sha256(data).hexdigest() != sha:
            raise Corrupt(path, "these are not the bytes that its name stands for")
        return data

    def card(self, sha: str) -> BundleCard:
        """Return the bundle's card. Raises NotFound or Corrupt."""
        path = _card_path(sha)
        try:
            return _decode_card(self._objects.get(path))
        except NotFound:
            raise NotFound("code", sha) from None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Corrupt(path, str(error)) from error


def _sha(sha: str) -> str:
    # A path is built from it.
    if not SHA.fullmatch(sha):
        raise NotFound("code", sha[:100])
    return sha


def _zip_path(sha: str) -> str:
    return f"{PREFIX}{_sha(sha)}.zip"


def _card_path(sha: str) -> str:
    return f"{PREFIX}{_sha(sha)}.json"


def unpack(objects: Objects, sha: str, into: Path) -> Unpacked:
    """Return the bundle unpacked beneath `into`, from the store unless it lies there already.

    Any number of callers may do so at once. Raises NotFound, Corrupt, Unavailable, or InvalidInput
    for a bundle that this version takes for unsafe.
    """
    place = into / _sha(sha)
    if not place.is_dir():
        data = CodeStore(objects).get(sha)
        read_bundle(data)
        making = into / f".making-{uuid.uuid4().hex}"
        try:
            _extract(data, making)
            making.rename(place)
        except OSError:
            if not place.is_dir():  # else somebody else was first
                raise
        finally:
            shutil.rmtree(making, ignore_errors=True)
    card = _decode_card((place / CARD).read_bytes())
    return Unpacked(sha, place / FOLDER.rstrip("/"), card.modules)


def _extract(data: bytes, into: Path) -> None:
    (into / FOLDER).mkdir(parents=True)
    with zipfile.ZipFile(io.BytesIO(data)) as bundle:
        for member in bundle.infolist():
            path = into / member.filename
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bundle.read(member))
            # A handler must not change what others on this machine run.
            path.chmod(0o555 if member.external_attr >> 16 & stat.S_IXUSR else 0o444)


# --- what is deployed -------------------------------------------------------------------------


class Revision(msgspec.Struct, frozen=True):
    """Which bundle runs each deployed type, as of one deployment."""

    number: int = 0
    types: dict[str, str] = {}


class Deployed:
    """Which code new jobs of a type get. Blocking; may be called from several threads at once.

    Every deployment is an object of its own, created once under the next number: of two at the same
    moment one comes second, and builds on what the first one wrote.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        #: The newest one seen.
        self.revision = Revision()

    def current(self) -> dict[str, str]:
        """Return the hash of the bundle for every deployed type. Raises Unavailable or Corrupt."""
        return self._newest().types

    def deploy(self, sha: str, types: Iterable[str]) -> dict[str, str]:
        """Run new jobs of these types with this code, durably; return the whole mapping."""
        return self._change(dict.fromkeys(types, sha), ())

    def withdraw(self, types: Iterable[str]) -> dict[str, str]:
        """Run new jobs of these types with what the cluster was started with, if it has them."""
        return self._change({}, types)

    def _change(self, added: dict[str, str], removed: Iterable[str]) -> dict[str, str]:
        gone = set(removed)
        for _ in range(REVISIONS_KEPT):
            known = self._newest()
            types = {name: sha for name, sha in known.types.items() if name not in gone} | added
            if types == known.types:  # also when an earlier try was written without our knowing
                return types
            wanted = Revision(known.number + 1, dict(sorted(types.items())))
            if self._objects.put_if_absent(_revision_path(wanted.number), _encode(wanted)):
                self._note(wanted)
                if wanted.number > REVISIONS_KEPT:
                    self._objects.delete([_revision_path(wanted.number - REVISIONS_KEPT)])
                return types
        raise Conflict("others deploy all the time; try again")

    def _newest(self) -> Revision:
        known = self.revision
        # Numbers have one width, so that the store's order is theirs.
        after = _revision_path(known.number) if known.number else ""
        paths = [info.path for info in self._objects.list(DEPLOYED, after)]
        if not paths:
            return known
        try:
            found = msgspec.json.decode(self._objects.get(paths[-1]), type=Revision)
        except NotFound:
            return self._newest()  # so many came after it that it was removed
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Corrupt(paths[-1], str(error)) from error
        self._note(found)
        return found

    def _note(self, found: Revision) -> None:
        if found.number > self.revision.number:
            self.revision = found


def _revision_path(number: int) -> str:
    return f"{DEPLOYED}{number:020d}.json"


# --- which code made a result -----------------------------------------------------------------


def fingerprint(definition: JobDefinition, code: str = "") -> str:
    """Return 16 hex digits that stand for the code of a type: other code, other digits.

    `code` is the hash of its bundle. Of a type that the cluster was started with they are a hash
    over the files that define its functions; of a workflow, which has none, over what it declares.
    """
    if code:
        return code[:16]
    return _digest_of(definition)


def _digest_of(definition: JobDefinition) -> str:
    digest = hashlib.sha256()
    functions: list[Any] = []
    if not isinstance(definition, Workflow):
        functions.append(definition.handler)
    if isinstance(definition, FanOut):
        functions += [f for f in (definition.split, definition.join) if f is not None]
    files = {_source_file(function) for function in functions}
    if not functions or None in files:
        # Written at a prompt, or by a program: what it declares is all there is to look at.
        digest.update(definition.home.encode() + b"\0" + _encode(card_of(definition)))
    for path in sorted(path for path in files if path is not None):
        digest.update(_file_digest(path))
    return digest.hexdigest()[:16]


def _source_file(function: Any) -> str | None:
    try:
        path = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        return None  # Not written in Python.
    return path if path is not None and os.path.isfile(path) else None


@cache
def _file_digest(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()
