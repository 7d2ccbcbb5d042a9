"""SQL over a store: DuckDB in this process, with the views `jobs`, `attempts` and `tasks`.

Rule 1: nothing in the store is changed: the views read, and nothing writes through them. Rule 2: a
job is in `jobs` once, as it is now; its attempts are in `attempts` once, and in `tasks` each chunk
of it that is done. Rule 3: nothing is
downloaded: DuckDB may not install extensions. Rule 4: rows stream; no result need fit in memory.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa

from cluster.history.rows import REVISION_ANY
from cluster.history.tables import Tables, open_tables
from cluster.store.objects import Objects
from jobs.errors import DraymanError, InvalidInput, NotFound, Unavailable

__all__ = ["Answer", "select"]

#: How often history may be rewritten under a query before it gives up.
TRIES = 5
BATCH_ROWS = 10_000

CONFIG = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    # Else a table nobody knows is looked up among the variables of this program.
    "python_enable_replacements": "false",
}

#: The live row of a job, or else the one of history that nothing replaced since.
VIEW = """
create view {table} as
select * from {table}_live
union all by name
select * from {table}_history
"""
UNLESS_HIDDEN = """
where not exists (
    select 1 from hidden
    where hidden.id = {table}_history.{key} and hidden.below > {table}_history.revision
)
"""
#: Attempts of chunks are in history before the manager forgets them.
UNLESS_LIVE = """
and not exists (
    select 1 from attempts_live as live
    where live.revision = {revision_any} and live.job_id = attempts_history.job_id
        and live.task_id = attempts_history.task_id and live.number = attempts_history.number
)
"""
#: The last time that a chunk was made, if it counts: few were made more than once.
TASKS = """
create view replaced as
select job_id, task_id, earlier.attempts
from tasks_again as earlier join (
    select job_id, task_id, max(attempts) as attempts
    from tasks_again
    where attempts > 1
    group by all
) as last using (job_id, task_id)
where earlier.attempts < last.attempts;
create view tasks as
select * from tasks_live
union all by name
select * from tasks_history as history
where not exists (
    select 1 from tasks_live as live
    where live.job_id = history.job_id and live.task_id = history.task_id
) and not exists (
    select 1 from stale
    where stale.job_id = history.job_id and stale.task_id = history.task_id
) and not exists (
    select 1 from replaced
    where replaced.job_id = history.job_id and replaced.task_id = history.task_id
        and replaced.attempts = history.attempts
)
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query gave."""

    names: list[str]
    batches: Iterator[pa.RecordBatch]


@contextmanager
def select(
    objects: Objects, query: str, *, journal: Objects | None = None, with_live: bool = True
) -> Iterator[Answer]:
    """Run a query; its rows can be read until the context ends.

    Without `with_live` there are only the jobs that history has. Raises InvalidInput with what
    DuckDB says about the query, also while rows are read.
    """
    duckdb = _duckdb()
    with tempfile.TemporaryDirectory(prefix="drayman-sql-") as spill:
        for _ in range(TRIES):
            # Who asks for a table names it.
            with_tasks = "tasks" in query.lower()
            tables = open_tables(objects, journal, with_live=with_live, with_tasks=with_tasks)
            with duckdb.connect(config={**CONFIG, "temp_directory": spill}) as connection:
                _define_views(connection, tables)
                try:
                    answer = _answer(connection.sql(query))
                except (duckdb.Error, pa.ArrowException, OSError) as error:
                    if not tables.is_current(objects):
                        continue  # a file was merged away before it was read
                    raise _reason(error, tables) from error
                yield Answer(answer.names, _guarded(answer.batches, tables))
                return
    raise Unavailable("history is being rewritten", 1.0)


def _answer(relation: Any) -> Answer:
    if relation is None:
        raise InvalidInput("query", "is empty; write for example 'select count(*) from jobs'")
    reader = relation.to_arrow_reader(BATCH_ROWS)
    first = next(reader, None)  # what a query does wrong shows here, before anything is printed
    return Answer(reader.schema.names, chain([] if first is None else [first], reader))


def _guarded(batches: Iterator[pa.RecordBatch], tables: Tables) -> Iterator[pa.RecordBatch]:
    try:
        yield from batches
    except (pa.ArrowException, OSError) as error:
        raise _reason(error, tables) from error


def _reason(error: Exception, tables: Tables) -> DraymanError:
    for refusal in tables.refusals:
        if not isinstance(refusal, NotFound):
            return refusal
    if tables.refusals or "No such file" in str(error):
        return Unavailable("history was rewritten while it was read; ask again", 1.0)
    return InvalidInput("query", str(error))


def _define_views(connection: Any, tables: Tables) -> None:
    connection.execute("set TimeZone = 'UTC'")
    connection.register("hidden", tables.hidden)
    for name, table, key in (("jobs", tables.jobs, "id"), ("attempts", tables.attempts, "job_id")):
        connection.register(f"{name}_live", table.live)
        connection.register(f"{name}_history", table.history)
        view = VIEW + UNLESS_HIDDEN if tables.hidden.num_rows else VIEW
        if name == "attempts" and tables.overtaken:
            view = VIEW + UNLESS_HIDDEN + UNLESS_LIVE
        connection.execute(view.format(table=name, key=key, revision_any=REVISION_ANY))
    connection.register("stale", tables.stale)
    connection.register("tasks_live", tables.tasks.live)
    connection.register("tasks_history", tables.tasks.history)
    connection.register("tasks_again", tables.again)
    connection.execute(TASKS)


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError:
        raise InvalidInput("sql", "needs DuckDB: pip install 'drayman[sql]'") from None
    return duckdb
