"""The command line: `drayman --help` lists the commands.

Rule 1: it talks HTTP, and imports neither Ray nor the API's server unless a command must (`up`).
Rule 2: what was asked for goes to stdout, everything else to stderr; `--json` prints the API's own
JSON. Rule 3: exit codes mean something: 0 done, 1 the job failed, 2 the request was wrong or
refused, 3 Drayman could not be reached or said "later" for too long.
"""

import os
import sys
from typing import Annotated

import typer

from service import (
    cli_capacity,
    cli_code,
    cli_config,
    cli_endpoints,
    cli_jobs,
    cli_operate,
    cli_plan,
    cli_run,
    cli_schedule,
    cli_sql,
    cli_top,
    cli_watch,
)
from service.cli_show import EXIT_UNREACHABLE, EXIT_USAGE, Settings, complain
from service.target import TOKEN_ENV, URL_ENV, NoTarget

__all__ = ["app", "main"]

app = typer.Typer(
    name="drayman",
    help="Long-running jobs on Ray: accept in milliseconds, run for hours, lose nothing.",
    no_args_is_help=True,
    add_completion=False,
    # A trace with local variables would show tokens; what users can mend has its own message.
    pretty_exceptions_enable=False,
)


@app.callback()
def settings(
    context: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(envvar=URL_ENV, help="The API; by default the one running on this machine."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar=TOKEN_ENV, help="The token; by default the one `up` left here."),
    ] = None,
) -> None:
    """Keep what every command needs; given before the command's name."""
    context.obj = Settings(url, token)


for commands in (
    cli_run,
    cli_jobs,
    cli_watch,
    cli_top,
    cli_plan,
    cli_code,
    cli_operate,
    cli_endpoints,
    cli_schedule,
    cli_config,
    cli_capacity,
    cli_sql,
):
    commands.register(app)


def main() -> None:
    """Run the command line; the exit code says how it went."""
    # httpx has a command line of its own, which costs as much to import as all of this.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    if sys.stdout is None:  # it was closed by whoever started this
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it is the process's
    try:
        app()
        sys.stdout.flush()
    except NoTarget as error:
        complain(str(error))
        sys.exit(EXIT_UNREACHABLE)
    except OSError as error:  # a full disk behind stdout, say
        complain(str(error))
        os._exit(EXIT_USAGE)  # at exit Python would try to write what is left, and say so
    except Exception as error:
        # Looked up by module, because importing the client here would slow down `--help`.
        client, errors = sys.modules.get("service.client"), sys.modules.get("jobs.errors")
        if errors is not None and isinstance(error, errors.InvalidInput):
            complain(str(error))
            sys.exit(EXIT_USAGE)
        if client is not None and isinstance(error, client.Unreachable):
            complain(str(error))
            sys.exit(EXIT_UNREACHABLE)
        if client is not None and isinstance(error, client.ApiError):
            complain(str(error), error.problem)
            sys.exit(EXIT_UNREACHABLE if error.status >= 500 else EXIT_USAGE)
        raise


if __name__ == "__main__":
    main()
