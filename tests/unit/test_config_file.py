"""`drayman.toml`: what it says, what is refused and how, and that its page tells the truth."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import (
    Alerts,
    Config,
    PoolSettings,
    decode_config,
    default_config,
    encode_config,
)
from cluster.queue.rules import Limit, QueueLimits, TenantLimits
from jobs.errors import InvalidInput
from service import config_file, deployment, launch
from service.config_file import changes, config_of, read_config, table_of, toml_of

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs/drayman.toml"
MACHINE = default_config(cpus=4)
KINDS: dict[str, type[msgspec.Struct]] = {
    "At the top": Config,
    "queues": QueueLimits,
    "pools": PoolSettings,
    "tenants": TenantLimits,
    "limits": Limit,
    "alerts": Alerts,
}
POOLS = '[pools.cpu]\nqueues = ["default", "slow"]\n'


def parsed(text: str, machine: Config | None = MACHINE) -> Config:
    config, problems = config_of(tomllib.loads(text), machine)
    assert problems == []
    assert config is not None
    return config


def problems(text: str, machine: Config | None = MACHINE) -> list[str]:
    config, found = config_of(tomllib.loads(text), machine)
    assert (config is None) == bool(found)
    return [f"{at}: {reason}" for at, reason in found]


# --- reading ----------------------------------------------------------------------------------


def test_a_file_says_everything() -> None:
    config = parsed(
        """
        default_queue = "fast"
        depth_max = 10
        [queues.fast]
        max_run_s = 1
        then = "slow"
        [pools.cpu]
        queues = ["fast", "slow"]
        max = 4
        resources = {tape = 1}
        label_selector = {tier = "!in(spot,old)"}
        [tenants."*"]
        weight = 3
        [limits."http:api.example.com"]
        rate = 10
        [alerts]
        dead_letters_url = "https://pager.example/in"
        """
    )

    assert config == Config(
        default_queue="fast",
        depth_max=10,
        queues={"fast": QueueLimits(max_run_s=1.0, then="slow")},
        pools={
            "cpu": PoolSettings(
                name="cpu",
                queues=["fast", "slow"],
                max=4,
                resources={"tape": 1.0},
                label_selector={"tier": "!in(spot,old)"},
            )
        },
        tenants={"*": TenantLimits(weight=3.0)},
        limits={"http:api.example.com": Limit(rate=10.0)},
        alerts=Alerts("https://pager.example/in"),
    )


def test_an_empty_file_is_what_suits_the_machine() -> None:
    assert parsed("") == MACHINE


def test_without_pools_the_cpu_pool_serves_what_no_other_does() -> None:
    config = parsed("[queues.fast]\n[queues.io]\ndepth_max = 5")

    assert config.pools["cpu"].queues == ["default", "fast"]
    assert config.pools["io"] == MACHINE.pools["io"]


def test_a_file_with_pools_has_those_alone() -> None:
    assert list(parsed(POOLS).pools) == ["cpu"]


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "drayman.toml"
    path.write_text('[pools.cpu]\nqueues = []\nmax = "4"\nmim = 1')

    with pytest.raises(InvalidInput) as refused:
        read_config(path, MACHINE)

    assert str(refused.value) == (
        f"config: {path} is wrong\n"
        "  pools.cpu.mim: there is no such setting; did you mean min?\n"
        "  pools.cpu.max: expected `int`, got `str`"
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"queues.fast = ", "is not TOML"),
        (b"depth_max = 1\ndepth_max = 2", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
        (b"a = " + b"[" * 10_000, "is not TOML"),
        (b"a = " + b"9" * 10_000, "is not TOML"),
        (b"#" * (config_file.BYTES_MAX + 1), "has more than 1,048,576 bytes"),
    ],
)
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "drayman.toml"
    path.write_bytes(data)

    with pytest.raises(InvalidInput, match=said):
        read_config(path, MACHINE)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        read_config(tmp_path / "none.toml", MACHINE)
    with pytest.raises(InvalidInput, match="Is a directory"):
        read_config(tmp_path, MACHINE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        # what is no setting
        ("defaultqueue = 'x'", "defaultqueue: there is no such setting; did you mean default_"),
        ("[pools]\ncpu = 4", "pools.cpu: is a table of settings, not 4"),
        ("queues = ['fast']", "queues: is a table, not a list"),
        ("[tenant.acme]\nweight = 2", "tenant: there is no such setting; did you mean tenants?"),
        ("[queues.a]\nzzz = 1", "queues.a.zzz: there is no such setting; there are: depth_max,"),
        ("[pools.cpu]\nname = 'cpu'\nqueues = ['a']", "pools.cpu.name: there is no such setting"),
        ("[pools.cpu]\nmax = 2", "pools.cpu.queues: is missing"),
        # what has the wrong type
        (POOLS + "max = '4'", "pools.cpu.max: expected `int`, got `str`"),
        (POOLS + "max = 4.5", "pools.cpu.max: expected `int`, got `float`"),
        (POOLS + "max = true", "pools.cpu.max: expected `int`, got `bool`"),
        (POOLS + "max = -1", "pools.cpu.max: expected `int` >= 0, got -1"),
        (POOLS + "max = 1979-05-27", "pools.cpu.max: expected `int`, got `date`"),
        (POOLS + "mode = 'thread'", 'pools.cpu.mode: use one of: process, async, got "thread"'),
        (POOLS + "num_cpus = nan", "pools.cpu.num_cpus: expected `float` >= 0.0, got NaN"),
        (POOLS + "resources = {tape = 'x'}", "pools.cpu.resources.tape: expected `float`"),
        (POOLS + "label_selector = {tier = 1}", "pools.cpu.label_selector.tier: expected `str`"),
        ("[pools.cpu]\nqueues = ['a', 1]", "pools.cpu.queues.1: expected `str`, got `int`"),
        ("depth_max = 100000000000000000000", "depth_max: is too large"),
        ('[limits."a b".rate]', 'limits."a b".rate: expected `float | null`, got `object`'),
        # what cannot be
        (POOLS + "max = 0", "pools.cpu.max: must be at least min, 1; got 0"),
        (POOLS + "min = 5", "pools.cpu.max: must be at least min, 5; got 1"),
        ("[pools.cpu]\nqueues = []", "pools.cpu.queues: is empty"),
        ("[pools.cpu]\nqueues = ['A']", "pools.cpu.queues: 'A': use 1 to 63 of a-z"),
        ("[pools.'C P U']\nqueues = ['a']", "pools.\"C P U\": 'C P U': use 1 to 63 of a-z"),
        (POOLS + "num_gpus = 1.5", "pools.cpu.num_gpus: beyond 1 only whole numbers"),
        (
            POOLS + "resources = {GPU = 1}",
            "pools.cpu.resources.GPU: is no custom resource; say num",
        ),
        (POOLS + "label_selector = {tier = 'a b'}", "pools.cpu.label_selector.tier: 'a b': use a"),
        (POOLS + "[queues.other]", "queues.other: no pool serves it; add it to the queues of"),
        ("[queues.a]\nthen = 'b'\nmax_run_s = 1", "queues.a.then: no other queue 'b'; there are:"),
        ("[queues.a]\nmax_run_s = 1", "queues.a.then: goes with max_run_s"),
        ("[queues.a]\noom_to = 'a'", "queues.a.oom_to: no other queue 'a'"),
        ("[queues.a]\noom_to='b'\n[queues.b]\noom_to='a'", "queues.b.oom_to: leads back here"),
        ("[queues.a]\ndepth_max = 0", "queues.a.depth_max: expected `int` >= 1, got 0"),
        ("default_queue = 'b'", "default_queue: no queue 'b'; there are: default, io"),
        ("[tenants.'']", "tenants: one has no name"),
        ("[tenants.a]\nweight = 0", "tenants.a.weight: use 0.001 to 1000, got 0"),
        ("[tenants.a]\nweight = nan", "tenants.a.weight: use 0.001 to 1000, got nan"),
        ("[limits.a]", "limits.a: says neither rate nor concurrency"),
        ("[limits.a]\nrate = 0", "limits.a.rate: use 0.000001 to 100,000 starts a second"),
        ("[limits.a]\nrate = 5e-324", "limits.a.rate: use 0.000001 to 100,000 starts a second"),
        ("[limits.a]\nconcurrency = 0", "limits.a.concurrency: expected `int` >= 1"),
        ("[limits.a]\nconcurrency = 1\nburst = 2", "limits.a.burst: says how many of a rate"),
        ("[limits.'a*b']\nrate = 1", 'limits."a*b": use 1 to 200 characters; only the last'),
        ("[alerts]\ndead_letters_url = 'pager'", "alerts.dead_letters_url: is no URL"),
        ("[alerts]\ndead_letters_url = 'http://[ab'", "alerts.dead_letters_url: is no URL"),
        ("[alerts]\ndead_letters_url = 'http://[:::]/'", "alerts.dead_letters_url: is no URL"),
        ("[alerts]\ndead_letters_url = 'http://a:70000/'", "alerts.dead_letters_url: is no URL"),
        ("[alerts]\nevery_s = 0", "alerts.every_s: expected `float` > 0.0, got 0"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, said: str) -> None:
    assert [x for x in problems(text) if x.startswith(said)], problems(text)


def test_without_a_machine_pools_must_be_given() -> None:
    assert problems("", None) == ["pools: is missing"]
    assert problems("[pools]", None)[0] == "pools: there is none; nothing would ever run"


@pytest.mark.parametrize("table", [None, 1, "x", [], True])
def test_what_is_no_table_is_refused(table: object) -> None:
    config, [(at, reason)] = config_of(table, MACHINE)

    assert (config, at) == (None, "config")
    assert reason.startswith("is a table of settings, not ")


def test_very_many_mistakes_are_not_all_told() -> None:
    config, told = config_of({f"depth_max_{n}": n for n in range(20_000)}, MACHINE)

    assert (config, len(told)) == (None, config_file.PROBLEMS_MAX)


def test_very_many_queues_are_refused_at_once() -> None:
    queues = {f"q{n}": {"then": f"q{n + 1}", "max_run_s": 1.0} for n in range(20_000)}

    config, told = config_of({"queues": queues}, MACHINE)

    assert (config, told[-1][0]) == (None, "queues")
    assert "are too many; have 1,000 at most" in told[-1][1]


# --- writing ----------------------------------------------------------------------------------

NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)
KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="*"), min_size=1)
SECONDS = st.floats(0.001, 1e6)
LABELS = st.dictionaries(st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True), NAMES, max_size=2)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    names = draw(st.lists(NAMES, min_size=2, max_size=4, unique=True))
    pools = {
        name: PoolSettings(
            queues=names,
            min=draw(st.integers(0, 3)),
            max=draw(st.integers(3, 9)),
            mode=draw(st.sampled_from(["process", "async"])),
            num_cpus=draw(st.floats(0, 8)),
            label_selector={k: v.rstrip("_-") for k, v in draw(LABELS).items()},
            memory_limit_mb=draw(st.none() | st.integers(128, 9_000)),
            wait_s=draw(SECONDS),
        )
        for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    }
    first, second = names[:2]
    return Config(
        pools=pools,
        queues={first: QueueLimits(max_run_s=draw(SECONDS), then=second), second: QueueLimits()},
        tenants=draw(
            st.dictionaries(KEYS, st.builds(TenantLimits, st.floats(0.01, 9)), max_size=3)
        ),
        limits=draw(
            st.dictionaries(
                KEYS.filter(lambda key: len(key) <= 200),
                st.builds(Limit, st.floats(0.01, 9), st.integers(1, 9)),
                max_size=3,
            )
        ),
        default_queue=second,
        depth_max=draw(st.integers(1, 1 << 53)),
    ).checked()


@given(configs(), st.booleans())
def test_what_is_written_is_read_as_the_same(config: Config, everything: bool) -> None:
    assert parsed(toml_of(config, everything=everything), None) == config


@given(configs(), st.booleans())
def test_the_same_goes_over_http(config: Config, everything: bool) -> None:
    table = json.loads(json.dumps(table_of(config, everything=everything)))

    assert config_of(table) == (config, [])
    assert decode_config(encode_config(config)) == config


def test_only_what_differs_is_written() -> None:
    config = parsed(POOLS + "[queues.slow]\noom_to = 'default'\ndraining = false")

    assert tomllib.loads(toml_of(config)) == {
        "pools": {"cpu": {"queues": ["default", "slow"]}},
        "queues": {"slow": {"oom_to": "default"}},
    }
    assert tomllib.loads(toml_of(config, everything=True))["queues"]["slow"]["draining"] is False


def test_changes_are_told_a_line_each() -> None:
    new = parsed(
        """
        depth_max = 7
        [pools.cpu]
        queues = ["default", "slow"]
        min = 4
        max = 8
        resources = {tape = 1}
        memory_limit_mb = 512
        [queues.slow]
        [limits."http:api.example.com"]
        rate = 2.5
        """
    )

    assert changes(MACHINE, new) == [
        'pools.cpu.queues: ["default"] -> ["default", "slow"]',
        "pools.cpu.max: 4 -> 8",
        "+ pools.cpu.resources.tape = 1.0",
        "pools.cpu.memory_limit_mb: none -> 512",
        "- pools.io",
        "+ queues.slow = {}",
        '+ limits."http:api.example.com" = { rate = 2.5 }',
        "depth_max: 5000000 -> 7",
    ]
    assert changes(new, new) == []


# --- what up begins with ----------------------------------------------------------------------


def test_wishes_of_up_go_beyond_the_file(tmp_path: Path) -> None:
    path = tmp_path / "drayman.toml"
    path.write_text("[queues.fast]")
    settings = launch.Settings(config=path, pools=("cpu:size=3",), state=tmp_path)

    config = deployment.starting_config(settings, cpus=8, gpus=0)

    assert (config.pools["cpu"].max, config.pools["cpu"].queues) == (3, ["default", "fast"])


def test_what_is_wrong_is_refused_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "drayman.toml"
    path.write_text("depth = 1")

    with pytest.raises(InvalidInput, match="did you mean depth_max"):
        deployment.check_config(launch.Settings(config=path, state=tmp_path))
    with pytest.raises(InvalidInput, match="no pool 'tape'"):
        deployment.check_config(launch.Settings(pools=("tape:size=1",), state=tmp_path))
    deployment.check_config(launch.Settings(pools=("gpu:size=1",), state=tmp_path))


# --- the example and the page -----------------------------------------------------------------


def settings_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Every setting of one table with its default."""
    tables = {"pools", "queues", "tenants", "limits", "alerts"} if kind is Config else {"name"}
    return {
        field.name: "required"
        if field.required
        else field.default
        if field.default is not msgspec.NODEFAULT
        else {}
        for field in msgspec.structs.fields(kind)
        if field.name not in tables
    }


def test_the_example_is_right_and_the_one_that_is_printed() -> None:
    config = read_config(EXAMPLE, MACHINE)

    assert list(config.all_queues) == ["fast", "slow", "large", "io"]
    assert (ROOT / "service/drayman.toml").read_text() == EXAMPLE.read_text()


def test_the_example_shows_every_setting_and_what_is_behind_a_hash_is_a_default() -> None:
    text = EXAMPLE.read_text()
    # `# min = 1  # why` becomes `min = 1`; prose has no `=` after one word.
    everything = tomllib.loads(re.sub(r"^# (?=[a-z_]+ +=)", "", text, flags=re.MULTILINE))
    said = tomllib.loads(text)

    for title, kind in KINDS.items():
        known = settings_of(kind)
        if kind is Config:
            tables = [({key: everything[key] for key in everything.keys() - KINDS}, said)]
        elif kind is Alerts:
            tables = [(everything[title], said[title])]
        else:
            tables = [(everything[title][name], said[title][name]) for name in said[title]]
        shown = {key for table, _ in tables for key in table}
        assert shown == set(known), title
        for table, own in tables:
            defaults = {key: known[key] for key in table.keys() - own.keys()}
            unlimited = {key: table[key] for key, value in defaults.items() if value is None}
            assert {key: table[key] for key in defaults} == defaults | unlimited, title


def test_the_page_lists_every_setting_with_its_default() -> None:
    page = (ROOT / "docs/config.md").read_text()

    for title, kind in KINDS.items():
        section = re.search(rf"^## \[?{title}\b.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
        assert section is not None, title
        listed: dict[str, Any] = {}
        for names, default in re.findall(r"^\| (`[^|]*`) \| ([^|]+) \|", section[0], re.MULTILINE):
            plain = default.strip("` ")
            value = plain if plain == "required" else None if plain == "none" else json.loads(plain)
            listed |= dict.fromkeys(re.findall(r"`(\w+)`", names), value)
        assert listed == settings_of(kind), title
