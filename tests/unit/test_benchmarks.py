"""The parts of the benchmarks that compute: what they print is quoted."""

import pytest

from benchmarks.asking import DRAYMAN, Asked, gathered
from benchmarks.comparison import comparable
from benchmarks.figures import Figure, percentile
from benchmarks.marks import Marks, marks_file
from benchmarks.questions.cost import store_calls
from benchmarks.server import clean_environment
from benchmarks.table import by_system, number, row


def test_marks_tell_jobs_that_never_ran_from_those_that_ran_twice() -> None:
    with marks_file(4) as marks:
        elsewhere = Marks(marks.path)
        for n in (0, 1, 1):
            elsewhere.hit(n)

        assert (marks.not_run(3), marks.run_twice(3)) == (1, 1)
        assert marks.not_run(4) == 2
        assert all(marks.began(2))
        assert marks.began(4)[2:] == [0.0, 0.0]


def test_a_job_carries_about_a_hundred_bytes() -> None:
    with marks_file(1) as marks:
        assert 80 <= len(marks.params(12_345)) <= 120
        assert marks.lines(5, 2) == marks.line(5) + b"\n" + marks.line(6)


def test_a_percentile_of_few_is_one_of_them() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0


def test_rounds_become_a_figure_with_a_value_each() -> None:
    rounds = [{("pace", "jobs/s"): 1.0}, {("pace", "jobs/s"): 3.0, ("lost", "jobs"): 0.0}]

    pace, lost = gathered("submit", rounds, {"pace": "why"})

    assert (pace.values, pace.median, pace.spread, pace.note) == (
        [1.0, 3.0],
        2.0,
        (1.0, 3.0),
        "why",
    )
    assert lost.values == [0.0]


def test_a_figure_that_was_not_measured_says_why() -> None:
    figure = Figure("cost", DRAYMAN, "idle store calls", "a minute", note="no strace")

    assert row(figure) == "| cost | idle store calls | - | a minute |  | no strace |"
    with pytest.raises(ValueError, match="no strace"):
        _ = figure.median


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.0784, "0.078"), (6.158, "6.16"), (43.62, "43.6"), (22_800.4, "22,800")],
)
def test_a_number_has_the_digits_that_mean_something(value: float, text: str) -> None:
    assert number(value) == text


def test_systems_are_rows_of_what_several_were_asked() -> None:
    ours = Figure("end_to_end", DRAYMAN, "backlog drain", "jobs/s", [19_000.0])
    alone = Figure("depth", DRAYMAN, "drain at 10,000 pending", "jobs/s", [20_000.0])
    other = Figure("end_to_end", "rq", "backlog drain", "jobs/s", [700.0])
    failed = Figure("end_to_end", "huey", "backlog drain", "jobs/s", note="it ended")

    table = by_system(comparable([ours, alone, other, failed]))

    assert table.splitlines()[2:] == [
        "| system | backlog drain, jobs/s |",
        "|---|---:|",
        "| drayman over HTTP | 19,000 |",
        "| rq | 700 |",
        "| huey | - (it ended) |",
    ]


def test_only_calls_that_name_a_path_in_the_store_are_store_calls() -> None:
    trace = """\
101 openat(AT_FDCWD, "/tmp/store/journal/1", O_RDONLY) = 5
101 openat(AT_FDCWD, "/etc/hosts", O_RDONLY) = 6
102 statfs("/tmp/store", {f_type=EXT2_SUPER_MAGIC}) = 0
102 <... openat resumed>) = 7
openat(AT_FDCWD, "/tmp/store/journal/2", O_RDONLY <unfinished ...>
"""

    assert store_calls(trace, "/tmp/store") == {"openat": 2, "statfs": 1}


def test_nothing_of_an_outer_ray_reaches_the_one_that_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH", "DRAYMAN_URL", "DRAYMAN_RUN"):
        monkeypatch.setenv(name, "outer")

    assert "outer" not in clean_environment().values()


def test_a_quick_run_has_its_own_sizes() -> None:
    assert (Asked().size(5, 1), Asked(quick=True).size(5, 1)) == (5, 1)
