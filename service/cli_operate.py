"""Commands for whoever operates Drayman."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from service.cli_jobs import given_params
from service.cli_show import (
    EXIT_USAGE,
    JsonFlag,
    age,
    connect,
    note,
    print_json,
    print_table,
    span,
)

if TYPE_CHECKING:
    from service.client import Client, Json

__all__ = ["register"]

tokens = typer.Typer(help="Make, list and revoke API tokens.", no_args_is_help=True)
metrics = typer.Typer(help="What Prometheus and Grafana need.", no_args_is_help=True)

#: Of a node's id, which has 56: two nodes that have these in common are not met.
NODE_CHARS = 8

Type = Annotated[str | None, typer.Option(help="Every one of this job type.")]
Queue = Annotated[str | None, typer.Option(help="Every one of this queue.")]
Cause = Annotated[str | None, typer.Option(help="Every one with this cause: error, oom, ...")]
Tenant = Annotated[str | None, typer.Option(help="For admins: only this tenant's.")]
Everything = Annotated[bool, typer.Option("--all", help="Every one there is.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="These jobs.")]


def queues(
    context: typer.Context,
    what: Annotated[
        Literal["pause", "resume", "drain", "fill"] | None,
        typer.Argument(
            metavar="WHAT",
            help="pause: start nothing more; resume. drain: take nothing new; fill: take it again.",
        ),
    ] = None,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="QUEUE", help="Of these queues.")
    ] = None,
    pause: Annotated[str | None, typer.Option(help="The same as `pause QUEUE`.")] = None,
    resume: Annotated[str | None, typer.Option(help="The same as `resume QUEUE`.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show every queue; pause, resume, drain or fill some first."""
    if (what is None) is not (not names):
        raise typer.BadParameter("say what to do and with which queues: `queues drain default`")
    with connect(context) as client:
        tell = {
            "pause": client.pause,
            "resume": client.resume,
            "drain": client.drain,
            "fill": client.fill,
        }
        if pause is not None:
            client.pause(pause)
        if resume is not None:
            client.resume(resume)
        for name in names or ():
            tell[what or ""](name)
        found = client.queues()
    if as_json:
        print_json(found)
        return
    rows = [
        [
            queue["name"],
            _states(queue, "paused", "draining"),
            *[f"{queue[column]:,}" for column in ("ready", "parked", "leased")],
            f"{queue['scheduled'] + queue['backing_off']:,}",
            f"{queue['dead']:,}",
            queue["workers"],
            span(queue["oldest_age_s"]) if queue["ready"] else "",
            f"{queue['drain_rate']:.1f}/s",
            "" if queue["eta"] is None else span(queue["eta"]["seconds"]),
        ]
        for queue in found
    ]
    titles = ["QUEUE", "", "READY", "PARKED", "LEASED", "LATER", "DEAD", "WORKERS", "OLDEST"]
    print_table([*titles, "RATE", "STARTS IN"], rows, "no queues")
    for queue in found:
        if queue["pending_reason"]:
            typer.echo(f"{queue['name']} waits: {queue['pending_reason']}")


def dead_letters(
    context: typer.Context,
    type: Annotated[str | None, typer.Option(help="Only this job type.")] = None,
    queue: Annotated[str | None, typer.Option(help="Only this queue.")] = None,
    cause: Annotated[str | None, typer.Option(help="Only this cause: error, oom, ...")] = None,
    tenant: Tenant = None,
    counts: Annotated[
        bool, typer.Option("--counts", help="How many, by queue, type and cause.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """List jobs that failed for good, with why; or count them."""
    with connect(context) as client:
        filters = {"type": type, "queue": queue, "cause": cause, "tenant": tenant}
        if counts:
            _show_counts(client.dead_counts(**filters), as_json)
            return
        jobs = list(client.dead_letters(**filters, limit=limit))
    if as_json:
        print_json(jobs)
        return
    rows = []
    for job in jobs:
        error = job["error"] or {"cause": "", "message": ""}
        message = error["message"].partition("\n")[0][:80]
        rows.append([job["id"], job["type"], age(job["finished_at"]), error["cause"], message])
    print_table(["ID", "TYPE", "DEAD FOR", "CAUSE", "ERROR"], rows, "no dead letters")


def _show_counts(found: "Sequence[Json]", as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    rows = [[one["queue"], one["type"], one["cause"], f"{one['count']:,}"] for one in found]
    print_table(["QUEUE", "TYPE", "CAUSE", "COUNT"], rows, "no dead letters")


def redrive(
    context: typer.Context,
    ids: Ids = None,
    type: Type = None,
    queue: Queue = None,
    cause: Cause = None,
    tenant: Tenant = None,
    everything: Everything = False,
    rate: Annotated[float | None, typer.Option(help="So many a second.")] = None,
    params: Annotated[
        str | None,
        typer.Option(help="All params of one job: a JSON object, @FILE, or - for stdin."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="name=value, repeatable: a param of one job to change."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Redrive dead letters: give them a new budget of attempts; one may get other params."""
    filters = _filters(ids, type, queue, cause, tenant, everything)
    edits = params is not None or bool(set_)
    if edits and (filters.keys() != {"ids"} or len(filters["ids"]) != 1 or rate is not None):
        raise typer.BadParameter("--params and --set go with the id of one job and nothing else")
    with connect(context) as client:
        if edits:
            found = given_params(params, set_, "--set")
            client.retry(filters["ids"][0], **{"set" if params is None else "params": found})
            count = 1
        else:
            count = client.redrive(**filters, rate=rate)
    if as_json:
        print_json({"redriven": count})
    else:
        typer.echo(f"redriven: {count}")
        if (named := len(filters.get("ids", ()))) > count:
            typer.echo(f"{named - count} of those named are no dead letters (any more)", err=True)


def purge(
    context: typer.Context,
    ids: Ids = None,
    type: Type = None,
    queue: Queue = None,
    cause: Cause = None,
    tenant: Tenant = None,
    everything: Everything = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Let dead letters go for good: they can't be redriven any more. History keeps them."""
    filters = _filters(ids, type, queue, cause, tenant, everything)
    with connect(context) as client:
        if not yes:
            _confirm(client, filters)
        count = client.purge(**filters)
    if as_json:
        print_json({"purged": count})
    else:
        typer.echo(f"purged: {count}")


def _filters(
    ids: list[str] | None,
    type: str | None,
    queue: str | None,
    cause: str | None,
    tenant: str | None,
    everything: bool,
) -> dict[str, Any]:
    """Return the filter for what was given; all is meant only if that was said."""
    wanted = {"ids": ids or None, "type": type, "queue": queue, "cause": cause, "tenant": tenant}
    filters = {name: value for name, value in wanted.items() if value is not None}
    if not filters and not everything:
        raise typer.BadParameter("say which: ids, --type, --queue, --cause, --tenant or --all")
    return filters


def _confirm(client: "Client", filters: dict[str, Any]) -> None:
    """Ask whether that many are meant; exit unless they are."""
    if "ids" in filters:
        count = len(filters["ids"])
    else:
        count = sum(one["count"] for one in client.dead_counts(**filters))
        if not count:
            return
    # Not `typer.confirm`: it writes to stdout.
    typer.echo(f"Let {count:,} of the dead letters go for good? [y/N] ", nl=False, err=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        note("nothing was purged; --yes does not ask")
        raise typer.Exit(EXIT_USAGE)


def workers(
    context: typer.Context,
    what: Annotated[
        Literal["pause", "resume", "drain"] | None,
        typer.Argument(
            metavar="WHAT",
            help="pause: give it nothing more; resume. drain: let it finish, and end.",
        ),
    ] = None,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="WORKER", help="Of these workers.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show every worker; pause, resume or drain some first."""
    if (what is None) is not (not names):
        raise typer.BadParameter("say what to do and with which workers: `workers drain NAME`")
    with connect(context) as client:
        tell = {
            "pause": client.pause_worker,
            "resume": client.resume_worker,
            "drain": client.drain_worker,
        }
        for name in names or ():
            tell[what or ""](name)
        found = client.workers()
    if as_json:
        print_json(found)
        return
    with_gpus = any(worker["gpus"] for worker in found)
    rows = [
        [
            worker["name"],
            _states(worker, "paused", "draining"),
            worker["pool"],
            ", ".join(worker["queues"]),
            f"{worker['node'][:NODE_CHARS]} {worker['pid']}",
            worker["started"],
            worker["held"],
            worker["free"],
            span(worker["silent_s"]),
            *([f"{worker['gpus']:g}"] if with_gpus else ()),
        ]
        for worker in found
    ]
    titles = ["WORKER", "", "POOL", "QUEUES", "NODE, PID", "RUNNING", "HELD", "FREE", "SILENT"]
    titles += ["GPUS"] if with_gpus else ()
    print_table(titles, rows, "no workers")


def _states(thing: "Json", *states: str) -> str:
    return ", ".join(state for state in states if thing[state])


@metrics.command()
def dashboard() -> None:
    """Print a dashboard for Grafana, to import there."""
    from importlib.resources import files

    typer.echo(files("service").joinpath("grafana.json").read_text(), nl=False)


@tokens.command("create")
def create_token(
    context: typer.Context,
    tenant: Annotated[str, typer.Option(help="Whose jobs it is for.")] = "default",
    scope: Annotated[
        str, typer.Option(help="submit, read, admin; several with commas. admin implies all.")
    ] = "submit,read",
    name: Annotated[str, typer.Option(help="What it is for, to tell it from others.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Make a token and print it. It can't be shown again."""
    scopes = [part.strip() for part in scope.split(",") if part.strip()]
    with connect(context) as client:
        made = client.create_token(tenant, scopes, name)
    if as_json:
        print_json(made)
    else:
        typer.echo(made["token"])
        note(f"id {made['id']}, tenant {made['tenant']}, scopes {', '.join(made['scopes'])}")


@tokens.command("list")
def list_tokens(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List the tokens that work; their text is not kept."""
    with connect(context) as client:
        found = client.tokens()
    if as_json:
        print_json(found)
        return
    rows = [
        [t["id"], t["tenant"], ",".join(t["scopes"]), t["name"], age(t["created_at"])]
        for t in found
    ]
    print_table(["ID", "TENANT", "SCOPES", "NAME", "AGE"], rows, "no tokens")


@tokens.command("revoke")
def revoke_token(
    context: typer.Context,
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As `token list` shows it.")],
    as_json: JsonFlag = False,
) -> None:
    """Revoke a token. It stops working within five seconds."""
    with connect(context) as client:
        revoked = client.revoke_token(token_id)
    if as_json:
        print_json(revoked)
    else:
        typer.echo(f"revoked {revoked['id']} {revoked['name']}".rstrip())


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    for command in (dead_letters, redrive, purge, queues, workers):
        app.command()(command)
    app.add_typer(tokens, name="token")
    app.add_typer(metrics, name="metrics")
