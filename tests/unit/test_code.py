"""Bundles of users' code: the same for the same files, whole, and safe to unpack."""

import hashlib
import io
import stat
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.bundle import make_bundle
from cluster.code import (
    CARD,
    CODE_BYTES_MAX,
    REVISIONS_KEPT,
    CodeStore,
    Deployed,
    fingerprint,
    pack,
    read_bundle,
    unpack,
)
from cluster.store.contract import Objects
from cluster.store.local import LocalObjects
from cluster.store.memory import MemoryObjects
from jobs.definition import job
from jobs.errors import Corrupt, InvalidInput, NotFound
from jobs.registry import Registry
from jobs.workflow import workflow
from tests.support.bundles import SHOP, shop

PACKAGE = {
    "shop/__init__.py": "",
    "shop/orders.py": SHOP.format(word="v1", more="").replace(
        "from jobs", "from shop.more import prices\nimport shop_rates\nfrom jobs", 1
    ),
    "shop/more/__init__.py": "",
    "shop/more/prices.py": "",
    "shop/more/table.csv": "a,b\n1,2\n",
    "shop/more/.env": "PASSWORD=hunter2\n",
    "shop/.git/config": "",
    "shop/__pycache__/old.cpython-311.pyc": "",
    "shop_rates.py": "RATE = 1.08\n",
    "unrelated.py": "",
}


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def members(data: bytes) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(data)).namelist()


# --- making -----------------------------------------------------------------------------------


def test_the_same_files_give_the_same_bytes_wherever_and_whenever(tmp_path: Path) -> None:
    one = make_bundle(["shop"], [str(written(tmp_path / "one", PACKAGE))])
    again = dict(reversed(PACKAGE.items()))
    two = make_bundle(["shop"], [str(written(tmp_path / "two", again))])

    assert one.data == two.data
    assert one.sha == hashlib.sha256(one.data).hexdigest()


def test_other_files_give_another_hash(tmp_path: Path) -> None:
    assert shop(tmp_path / "a", "v1").sha != shop(tmp_path / "b", "v2").sha


def test_a_bundle_holds_the_package_its_data_and_what_it_imports_from_beside_it(
    tmp_path: Path,
) -> None:
    bundle = make_bundle(["shop"], [str(written(tmp_path, PACKAGE))])

    assert members(bundle.data) == [
        CARD,
        "code/shop/__init__.py",
        "code/shop/more/__init__.py",
        "code/shop/more/prices.py",
        "code/shop/more/table.csv",
        "code/shop/orders.py",
        "code/shop_rates.py",
    ]
    assert bundle.card.modules == ["shop"]
    [card] = bundle.card.types
    assert (card.name, card.queue, card.max_attempts) == ("shop.invoice", "default", 5)
    assert card.summary == "Write an invoice, as of v1."
    assert msgspec.json.decode(card.schema)["required"] == ["cents"]


def test_a_module_without_types_may_be_named_for_the_others(tmp_path: Path) -> None:
    written(tmp_path, {"lazy.py": "", "shop.py": SHOP.format(word="v1", more="")})

    bundle = make_bundle(["shop", "lazy"], [str(tmp_path)])

    assert "code/lazy.py" in members(bundle.data)
    assert bundle.card.modules == ["shop"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("nowhere", "", "No module named 'nowhere'"),
        ("broken", "import no_such", "module 'broken' cannot be imported: ModuleNotFoundError"),
        ("broken", "raise OSError('disk')", "module 'broken' cannot be imported: OSError: disk"),
        ("empty", "X = 1", "no job type in empty"),
        ("dies", "import os; print('so long', flush=True); os._exit(3)", "ended with 3.*so long"),
        ("json", "", "Python's or Drayman's own name"),
        ("cluster", "", "Python's or Drayman's own name"),
        ("../etc", "", "no name of a module"),
        ("", "", "no name of a module"),
    ],
)
def test_what_cannot_be_bundled_is_named_with_the_reason(
    tmp_path: Path, name: str, text: str, told: str
) -> None:
    if text:
        (tmp_path / f"{name}.py").write_text(text)

    with pytest.raises(InvalidInput, match=told):
        make_bundle([name], [str(tmp_path)])


def test_too_much_data_in_a_package_is_refused_with_what_to_do(tmp_path: Path) -> None:
    written(tmp_path, PACKAGE)
    with (tmp_path / "shop/large.bin").open("wb") as file:
        file.truncate(CODE_BYTES_MAX + 1)

    with pytest.raises(InvalidInput, match="drayman upload"):
        make_bundle(["shop"], [str(tmp_path)])


def test_a_linked_folder_is_refused_and_a_linked_file_is_copied(tmp_path: Path) -> None:
    written(tmp_path, PACKAGE)
    (tmp_path / "shop/linked.csv").symlink_to(tmp_path / "unrelated.py")
    assert "code/shop/linked.csv" in members(make_bundle(["shop"], [str(tmp_path)]).data)

    (tmp_path / "shop/loop").symlink_to(tmp_path / "shop", target_is_directory=True)

    with pytest.raises(InvalidInput, match="is a link to a folder"):
        make_bundle(["shop"], [str(tmp_path)])


# --- what comes in ----------------------------------------------------------------------------


def tampered(data: bytes, change: Callable[[zipfile.ZipInfo], None], name: str) -> bytes:
    """Return the bundle with one more member, as `change` made it."""
    out = io.BytesIO(data)
    with zipfile.ZipFile(out, "a") as bundle:
        member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
        member.external_attr = (stat.S_IFREG | 0o644) << 16
        change(member)
        bundle.writestr(member, b"x")
    return out.getvalue()


def link(member: zipfile.ZipInfo) -> None:
    member.external_attr = (stat.S_IFLNK | 0o777) << 16


def deflate(member: zipfile.ZipInfo) -> None:
    member.compress_type = zipfile.ZIP_DEFLATED


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("code/../../evil.py", None, "leads out of it"),
        ("/etc/evil.py", None, "leads out of it"),
        ("code//evil.py", None, "leads out of it"),
        ("code/a\\..\\evil.py", None, "leads out of it"),
        ("code/./evil.py", None, "leads out of it"),
        ("code/evil\n.py", None, "leads out of it"),
        ("evil.py", None, "files of a bundle lie in code/"),
        ("code/evil.py", link, "is a link"),
        ("code/evil.py", deflate, "is compressed"),
        ("code/shop.py", None, "two files of the bundle have one name"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_bundle_with_a_dangerous_member_is_refused(
    tmp_path: Path, name: str, change: Any, told: str
) -> None:
    data = tampered(shop(tmp_path, "v1").data, change or (lambda member: None), name)

    with pytest.raises(InvalidInput, match=told):
        CodeStore(MemoryObjects()).put(data)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("code/bomb.py", b"\0" * (10 << 20))

    with pytest.raises(InvalidInput, match="is compressed"):
        read_bundle(out.getvalue())


def test_a_size_that_is_a_lie_is_noticed(tmp_path: Path) -> None:
    data = bytearray(shop(tmp_path, "v1").data)
    at = data.rindex(b"PK\1\2") + 20  # compressed and plain size in the last directory entry
    data[at : at + 8] = (1 << 20).to_bytes(4, "little") * 2

    with pytest.raises(InvalidInput):
        read_bundle(bytes(data))


@pytest.mark.parametrize("cut", [0, 1, 10, 100])
def test_what_is_no_zip_is_refused(tmp_path: Path, cut: int) -> None:
    with pytest.raises(InvalidInput):
        read_bundle(shop(tmp_path, "v1").data[:-cut] if cut else b"")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "Shop!"}, "no name"),
        ({"queue": "Default"}, "queue 'Default'"),
        ({"max_attempts": 0}, "below what it can be"),
        ({"timeout_s": -1.0}, "below what it can be"),
    ],
)
def test_a_card_that_lies_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    card = shop(tmp_path, "v1").card
    [kind] = card.types
    lying = msgspec.structs.replace(card, types=[msgspec.structs.replace(kind, **change)])

    with pytest.raises(InvalidInput, match=told):
        read_bundle(pack(lying, {"shop.py": (b"", False)}))


def test_a_card_whose_module_is_not_there_is_refused(tmp_path: Path) -> None:
    card = shop(tmp_path, "v1").card

    with pytest.raises(InvalidInput, match="module 'shop' is not in the bundle"):
        read_bundle(pack(card, {"other.py": (b"", False)}))


# --- the store --------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "local"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    return MemoryObjects() if request.param == "memory" else LocalObjects(tmp_path / "store")


def test_what_is_put_comes_back_and_unpacks(objects: Objects, tmp_path: Path) -> None:
    written(tmp_path / "src", PACKAGE)
    (tmp_path / "src/shop/tool.sh").write_text("#!/bin/sh\n")
    (tmp_path / "src/shop/tool.sh").chmod(0o755)
    bundle = make_bundle(["shop"], [str(tmp_path / "src")])
    store = CodeStore(objects)

    assert store.put(bundle.data)[0] == store.put(bundle.data)[0] == bundle.sha
    assert store.get(bundle.sha) == bundle.data
    assert store.card(bundle.sha) == bundle.card
    found = unpack(objects, bundle.sha, tmp_path / "into")

    assert found.modules == ["shop"]
    assert (found.path / "shop/more/table.csv").read_text() == "a,b\n1,2\n"
    assert (found.path / "shop/tool.sh").stat().st_mode & 0o777 == 0o555
    assert (found.path / "shop/orders.py").stat().st_mode & 0o222 == 0


def test_many_may_unpack_one_bundle_at_once(objects: Objects, tmp_path: Path) -> None:
    bundle = shop(tmp_path / "src", "v1")
    CodeStore(objects).put(bundle.data)
    start, paths = threading.Barrier(8), []

    def one() -> None:
        start.wait()
        paths.append(unpack(objects, bundle.sha, tmp_path / "into").path)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(paths) == 8
    assert set(paths) == {tmp_path / "into" / bundle.sha / "code"}
    assert [p.name for p in (tmp_path / "into").iterdir()] == [bundle.sha]


def test_bytes_that_changed_in_the_store_are_corrupt_and_leave_nothing(tmp_path: Path) -> None:
    objects = MemoryObjects()
    bundle = shop(tmp_path / "src", "v1")
    CodeStore(objects).put(bundle.data)
    objects.put(f"code/{bundle.sha}.zip", bundle.data.replace(b"v1", b"v9"))

    with pytest.raises(Corrupt):
        unpack(objects, bundle.sha, tmp_path / "into")

    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize("sha", ["0" * 64, "", "../../etc/passwd", "0" * 63, "A" * 64])
def test_a_hash_that_is_not_kept_or_none_is_not_found(tmp_path: Path, sha: str) -> None:
    store = CodeStore(MemoryObjects())

    for ask in (store.get, store.card, lambda sha: unpack(MemoryObjects(), sha, tmp_path)):
        with pytest.raises(NotFound):
            ask(sha)


# --- what is deployed -------------------------------------------------------------------------

A, B = "a" * 64, "b" * 64


def test_the_newest_deployment_counts_for_everybody(objects: Objects) -> None:
    mine, theirs = Deployed(objects), Deployed(objects)
    assert theirs.current() == {}

    mine.deploy(A, ["shop.a", "shop.b"])
    theirs.deploy(B, ["shop.b"])

    assert mine.current() == theirs.current() == {"shop.a": A, "shop.b": B}
    assert Deployed(objects).current() == mine.current()
    assert mine.withdraw(["shop.b"]) == {"shop.a": A}
    assert theirs.current() == {"shop.a": A}
    assert theirs.revision.number == 3


def test_the_same_deployment_again_changes_nothing(objects: Objects) -> None:
    deployed = Deployed(objects)
    deployed.deploy(A, ["shop.a"])

    deployed.deploy(A, ["shop.a"])

    assert deployed.revision.number == 1


def test_of_deployments_at_once_none_is_lost(objects: Objects) -> None:
    start = threading.Barrier(8)

    def one(number: int) -> None:
        deployed = Deployed(objects)
        start.wait()
        deployed.deploy(A, [f"shop.type{number}"])

    threads = [threading.Thread(target=one, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert Deployed(objects).current() == {f"shop.type{n}": A for n in range(8)}


def test_old_deployments_are_removed_and_whoever_slept_still_finds_the_newest() -> None:
    objects = MemoryObjects()
    writer, sleeper = Deployed(objects), Deployed(objects)
    writer.deploy(A, ["shop.a"])
    sleeper.current()
    for number in range(REVISIONS_KEPT + 20):
        writer.deploy(f"{number:064x}", ["shop.a"])

    assert sleeper.current() == writer.current()
    assert len(list(objects.list("code/deployed/"))) == REVISIONS_KEPT


# --- fingerprints -----------------------------------------------------------------------------


def loaded(name: str) -> Any:
    return Registry.load([name], entry_points=False)


def test_the_fingerprint_of_a_type_is_that_of_the_file_that_defines_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    text = SHOP.format(word="v1", more="")
    written(tmp_path, {"code_one.py": text, "code_same.py": text, "code_two.py": text + "#\n"})

    one, same, two = (
        fingerprint(loaded(name)["shop.invoice"]) for name in ("code_one", "code_same", "code_two")
    )

    assert one == same != two
    assert len(one) == 16
    assert int(one, 16) >= 0


def test_the_fingerprint_of_a_bundle_s_type_is_the_bundle_s() -> None:
    assert fingerprint(loaded("jobs.library.report_annual")["report.annual"], A) == "a" * 16


def test_a_workflow_s_fingerprint_is_that_of_its_declaration() -> None:
    definition = loaded("jobs.library.report_annual")["report.annual"]

    def declared(step: str) -> str:
        made = workflow("tour.deliver", definition.params_model)
        made.step(step, definition)
        return fingerprint(made)

    assert declared("a") == declared("a") != declared("b")


def test_a_function_without_a_file_has_a_fingerprint_too() -> None:
    names: dict[str, Any] = {"job": job}
    exec(  # as at a prompt
        "from pydantic import BaseModel\nclass P(BaseModel): pass\n"
        "@job('tour.typed')\ndef typed(ctx, params: P): ...\n",
        names,
    )

    assert len(fingerprint(names["typed"])) == 16
