"""Commands for the config: looking at a `drayman.toml`, and at what is in force."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli_show import EXIT_USAGE, JsonFlag, complain, connect, note, print_json

if TYPE_CHECKING:
    from cluster.config import Config

__all__ = ["register"]

#: Around an ETag.
QUOTE = '"'

config = typer.Typer(
    help="Queues, tenants, limits and pools: check, show and change them.", no_args_is_help=True
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="A drayman.toml.")]


@config.command()
def check(file: File) -> None:
    """Say whether a file is right, without a server; exit 2 with all that is wrong if not."""
    from cluster.config import default_config

    # As if there were a GPU, as `up` checks it.
    found = _read(file, default_config(os.cpu_count() or 1, 1))
    queues, pools = ", ".join(found.all_queues), ", ".join(found.pools)
    typer.echo(f"{file} is right: queues {queues}; pools {pools}")


@config.command()
def show(
    context: typer.Context,
    everything: Annotated[
        bool, typer.Option("--all", help="Those left at their defaults too.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Print the config in force, as a drayman.toml that says the same."""
    from service.config_file import toml_of

    with connect(context) as client:
        table, _ = client.config()
    if as_json:
        print_json(table)
    else:
        typer.echo(toml_of(_known(table), everything=everything), nl=False)


@config.command()
def apply(
    context: typer.Context,
    file: File,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Put a file in force; print what changes. A file without pools keeps those there are."""
    from service.config_file import changes, table_of

    with connect(context) as client:
        table, etag = client.config()
        current = _known(table)
        wanted = _read(file, current)
        lines = changes(current, wanted)
        if lines and not dry_run:
            table, etag = client.configure(table_of(wanted), etag)
    if as_json:
        print_json(table_of(wanted, everything=True) if dry_run else table)
        return
    for line in lines:
        typer.echo(line)
    if not lines:
        note("nothing changes")
    elif not dry_run:
        note(f"in force, as revision {etag.strip(QUOTE)}")


@config.command()
def example() -> None:
    """Print a drayman.toml with comments, to begin with."""
    from importlib.resources import files

    typer.echo(files("service").joinpath("drayman.toml").read_text(), nl=False)


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.add_typer(config, name="config")


def _read(file: Path, machine: "Config") -> "Config":
    """Return what the file says; exit with all that is wrong."""
    from jobs.errors import InvalidInput
    from service.config_file import read_config

    try:
        return read_config(file, machine)
    except InvalidInput as error:
        complain(error.reason)
        raise typer.Exit(EXIT_USAGE) from None


def _known(table: dict[str, Any]) -> "Config":
    """Return a config as the API says it; exit if it is of another version."""
    from service.config_file import config_of

    found, problems = config_of(table)
    if found is None:
        at, reason = problems[0]
        complain(f"the Drayman that answers is of another version: {at}: {reason}")
        raise typer.Exit(EXIT_USAGE)
    return found
