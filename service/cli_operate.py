"""Commands for whoever operates Drayman."""

from typing import Annotated, Any

import typer

from service.cli_show import JsonFlag, age, connect, note, print_json, print_table

__all__ = ["register"]

tokens = typer.Typer(help="Make, list and revoke API tokens.", no_args_is_help=True)


def queues(
    context: typer.Context,
    pause: Annotated[str | None, typer.Option(help="Start nothing more from this queue.")] = None,
    resume: Annotated[str | None, typer.Option(help="Start from this queue again.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show every queue; pause or resume one."""
    with connect(context) as client:
        if pause is not None:
            client.pause(pause)
        if resume is not None:
            client.resume(resume)
        found = client.queues()
    if as_json:
        print_json(found)
        return
    columns = ("ready", "leased", "scheduled", "backing_off", "dead", "workers")
    rows = [
        [
            queue["name"],
            "paused" if queue["paused"] else "",
            *[queue[column] for column in columns],
            f"{queue['oldest_age_s']:.0f} s",
            f"{queue['drain_rate']:.1f}/s",
        ]
        for queue in found
    ]
    titles = ["QUEUE", "", *[c.replace("_", " ").upper() for c in columns], "OLDEST", "RATE"]
    print_table(titles, rows, "no queues")


def dead_letters(
    context: typer.Context,
    type: Annotated[str | None, typer.Option(help="Only this job type.")] = None,
    queue: Annotated[str | None, typer.Option(help="Only this queue.")] = None,
    cause: Annotated[str | None, typer.Option(help="Only this cause: error, oom, ...")] = None,
    tenant: Annotated[str | None, typer.Option(help="For admins: only this tenant's.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """List jobs that failed for good, with why."""
    with connect(context) as client:
        jobs = list(
            client.dead_letters(type=type, queue=queue, cause=cause, tenant=tenant, limit=limit)
        )
    if as_json:
        print_json(jobs)
        return
    rows = []
    for job in jobs:
        error = job["error"] or {"cause": "", "message": ""}
        message = error["message"].partition("\n")[0][:80]
        rows.append([job["id"], job["type"], age(job["finished_at"]), error["cause"], message])
    print_table(["ID", "TYPE", "DEAD FOR", "CAUSE", "ERROR"], rows, "no dead letters")


def redrive(
    context: typer.Context,
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="These jobs.")] = None,
    type: Annotated[str | None, typer.Option(help="Every one of this job type.")] = None,
    queue: Annotated[str | None, typer.Option(help="Every one of this queue.")] = None,
    cause: Annotated[str | None, typer.Option(help="Every one with this cause.")] = None,
    tenant: Annotated[str | None, typer.Option(help="For admins: only this tenant's.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every one there is.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Give dead letters a new budget of attempts."""
    wanted: dict[str, Any] = {
        "ids": ids or None,
        "type": type,
        "queue": queue,
        "cause": cause,
        "tenant": tenant,
    }
    filters = {name: value for name, value in wanted.items() if value is not None}
    if not filters and not everything:
        raise typer.BadParameter("say which: ids, --type, --queue, --cause, --tenant or --all")
    with connect(context) as client:
        count = client.redrive(**filters)
    if as_json:
        print_json({"redriven": count})
    else:
        typer.echo(f"redriven: {count}")


def workers(context: typer.Context, as_json: JsonFlag = False) -> None:
    """Show every worker."""
    with connect(context) as client:
        found = client.workers()
    if as_json:
        print_json(found)
        return
    rows = [
        [
            worker["name"],
            worker["pool"],
            ",".join(worker["queues"]),
            f"{worker['node']} {worker['pid']}",
            worker["started"],
            worker["held"],
            f"{worker['silent_s']:.1f} s",
            "draining" if worker["draining"] else "",
        ]
        for worker in found
    ]
    titles = ["WORKER", "POOL", "QUEUES", "NODE, PID", "RUNNING", "HELD", "SILENT FOR", ""]
    print_table(titles, rows, "no workers")


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
    for command in (dead_letters, redrive, queues, workers):
        app.command()(command)
    app.add_typer(tokens, name="token")
