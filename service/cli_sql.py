"""The command that answers SQL. It reads the store itself, so nothing need be running."""

import csv
import sys
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli_show import (
    EXIT_FAILED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    JsonFlag,
    Settings,
    complain,
    note,
    print_table,
)
from service.target import DEFAULT_PORT, NoTarget

if TYPE_CHECKING:
    from service.sql import Answer

__all__ = ["register"]

#: A table needs all its rows at once, to know how wide it is.
TABLE_ROWS_MAX = 1_000
DAY = timedelta(days=1)


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def sql(
    context: typer.Context,
    query: Annotated[
        str, typer.Argument(help="A query over `jobs`, `attempts` and `tasks`; - for stdin.")
    ],
    store: Annotated[
        str | None,
        typer.Option(help="A folder or URL; by default the store of the Drayman that runs here."),
    ] = None,
    journal: Annotated[
        str | None, typer.Option(help="Where the store's journal lies, if elsewhere.")
    ] = None,
    history_only: Annotated[
        bool,
        typer.Option("--history-only", help="Leave out what waits, runs or ended just now."),
    ] = False,
    format: Annotated[Format, typer.Option(help="How to print the rows.")] = Format.TABLE,
    as_json: JsonFlag = False,
) -> None:
    """Ask about jobs, attempts and chunks with SQL (DuckDB)."""
    from cluster.store.objects import open_store
    from jobs.errors import DraymanError, Kind
    from service.sql import select

    text = sys.stdin.read() if query == "-" else query
    show = _SHOW[Format.JSON if as_json else format]
    try:
        objects = open_store(store or _store_here(context.obj), read_only=True)
        beside = open_store(journal, read_only=True) if journal is not None else None
        with select(objects, text, journal=beside, with_live=not history_only) as answer:
            show(answer)
    except DraymanError as error:
        complain(str(error))
        codes = {Kind.INVALID: EXIT_USAGE, Kind.UNAVAILABLE: EXIT_UNREACHABLE}
        raise typer.Exit(codes.get(error.kind, EXIT_FAILED)) from None


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(sql)


def _store_here(settings: Settings) -> str:
    """Return the store of the run that was named by its URL, or that is the only one."""
    from service.runfile import RunFolder, is_alive, state_dir

    runs = [run for run in RunFolder(state_dir()).all() if is_alive(run.driver)]
    if settings.url is not None:
        runs = [run for run in runs if run.url == settings.url.rstrip("/")]
    if not runs:
        raise NoTarget("no such Drayman runs here; name its store with --store")
    if len(runs) > 1:
        preferred = [run for run in runs if run.port == DEFAULT_PORT]
        if not preferred:
            urls = ", ".join(run.url for run in runs)
            raise NoTarget(f"several run here ({urls}); choose with --url or --store")
        runs = preferred
    return runs[0].store


# --- showing ----------------------------------------------------------------------------------


def _rows(answer: "Answer") -> Iterator[list[Any]]:
    # By place, not by name: two columns of a query may have the same.
    for batch in answer.batches:
        columns = [column.to_pylist(maps_as_pydicts="strict") for column in batch.columns]
        yield from ([_plain(cell) for cell in row] for row in zip(*columns, strict=True))


def _plain(value: Any) -> Any:
    """Return the value as JSON has it, but for numbers and moments."""
    if type(value).__name__ == "MonthDayNano":  # an interval; DuckDB's have no nanoseconds
        time = timedelta(microseconds=value.nanoseconds // 1000)
        return (
            _duration(value.months, value.days, time) if value.months else time + value.days * DAY
        )
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return value


def _duration(months: int, days: int, time: timedelta) -> str:
    """Return an interval with months as ISO 8601 has it: a month is not so many days.

    Each part has its own sign, as in ISO 8601-2.
    """
    years, rest = divmod(abs(months), 12)
    sign = -1 if months < 0 else 1
    parts = ((sign * years, "Y"), (sign * rest, "M"), (days, "D"))
    date = "".join(f"{count}{unit}" for count, unit in parts if count)
    seconds = f"{time.total_seconds():.6f}".rstrip("0").rstrip(".")
    return f"P{date}T{seconds}S" if time else f"P{date}"


def _show_table(answer: "Answer") -> None:
    rows = _rows(answer)
    shown = [[_cell(value) for value in row] for row in islice(rows, TABLE_ROWS_MAX)]
    print_table(answer.names, shown, "no rows")
    if next(rows, None) is not None:
        note(f"only the first {TABLE_ROWS_MAX:,} rows; --format csv prints all")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, list | dict):
        return _json(value)
    return str(value)


def _show_json(answer: "Answer") -> None:
    if twice := next((name for name in answer.names if answer.names.count(name) > 1), None):
        raise typer.BadParameter(f"column {twice!r} stands twice; give one another name with AS")
    before = "["
    for row in _rows(answer):
        typer.echo(before + _json(dict(zip(answer.names, row, strict=True))), nl=False)
        before = ",\n"
    typer.echo("[]" if before == "[" else "]")


def _show_csv(answer: "Answer") -> None:
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(answer.names)
    for row in _rows(answer):
        table.writerow([_text(value) for value in row])


def _text(value: Any) -> Any:
    if isinstance(value, datetime | date | timedelta | list | dict):
        return _json(value).strip('"')
    return value


def _json(value: Any) -> str:
    import msgspec

    return msgspec.json.Encoder(decimal_format="number").encode(value).decode()


_SHOW: dict[Format, Callable[["Answer"], None]] = {
    Format.TABLE: _show_table,
    Format.JSON: _show_json,
    Format.CSV: _show_csv,
}
