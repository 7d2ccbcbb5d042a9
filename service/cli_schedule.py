"""Commands for schedules: jobs that are submitted again and again.

Moments are shown as clocks show them in the schedule's own time zone, so that a day on which they
are changed can be seen.
"""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

from service.cli_code import bundle_of, send
from service.cli_jobs import (
    JobType,
    Label,
    MaxAttempts,
    Modules,
    Notify,
    Param,
    Params,
    Priority,
    Queue,
    Timeout,
    Webhook,
    given_params,
    pairs,
    targets,
)
from service.cli_show import JsonFlag, age, connect, note, print_json, print_table, seconds

if TYPE_CHECKING:
    from service.client import Json

__all__ = ["register"]

schedules = typer.Typer(help="Submit a job again and again, by a cron line.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.")]


@schedules.command()
def put(
    context: typer.Context,
    name: Name,
    type: JobType,
    cron: Annotated[
        str, typer.Option(help="Minute, hour, day of month, month, day of week; or @daily.")
    ],
    pair: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME=VALUE", help="Params; JSON where it is JSON."),
    ] = None,
    tz: Annotated[str | None, typer.Option(help="Time zone of the line; else UTC.")] = None,
    params: Params = None,
    param: Param = None,
    catch_up: Annotated[
        str | None, typer.Option(help="Ticks to make up for: none, latest (as usual) or all.")
    ] = None,
    overlap: Annotated[
        str | None, typer.Option(help="allow, or skip: none while an earlier job is unfinished.")
    ] = None,
    jitter: Annotated[
        str | None, typer.Option(help="Submit each job late by up to this: 90, 5m.")
    ] = None,
    starts_at: Annotated[str | None, typer.Option(help="No tick before (RFC 3339).")] = None,
    ends_at: Annotated[str | None, typer.Option(help="No tick after (RFC 3339).")] = None,
    paused: Annotated[bool, typer.Option("--paused", help="Keep it, but fire nothing.")] = False,
    queue: Queue = None,
    priority: Priority = None,
    timeout: Timeout = None,
    max_attempts: MaxAttempts = None,
    label: Label = None,
    webhook: Webhook = None,
    notify: Notify = None,
    jobs: Modules = None,
    as_json: JsonFlag = False,
) -> None:
    """Submit a job at each tick from now on, in place of any schedule of this name."""
    job = _given(
        type=type,
        params=given_params(params, [*(pair or ()), *(param or ())]),
        queue=queue,
        priority=priority,
        timeout_s=None if timeout is None else seconds(timeout),
        max_attempts=max_attempts,
        labels=pairs(label, "--label") or None,
        notify=targets(webhook, notify) or None,
    )
    options = _given(
        timezone=tz,
        catch_up=catch_up,
        overlap=overlap,
        jitter_s=None if jitter is None else seconds(jitter),
        starts_at=starts_at,
        ends_at=ends_at,
        paused=paused or None,
    )
    bundle = bundle_of(jobs) if jobs else None
    with connect(context) as client:
        if bundle is not None:
            send(client, bundle)
            job["code"] = bundle.sha
        _show(client.put_schedule(name, cron, job, **options), as_json)


@schedules.command("list")
def list_schedules(
    context: typer.Context,
    tenant: Annotated[str | None, typer.Option(help="For admins: only this tenant's.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List schedules, each with its next tick."""
    with connect(context) as client:
        found = client.schedules(**_given(tenant=tenant))
    if as_json:
        print_json(found)
        return
    rows = [
        [one["name"], one["cron"], one["timezone"], one["job"]["type"], _next(one), one["fired"]]
        for one in found
    ]
    print_table(["NAME", "CRON", "TIME ZONE", "TYPE", "NEXT", "FIRED"], rows, "no schedules")


@schedules.command()
def show(context: typer.Context, name: Name, as_json: JsonFlag = False) -> None:
    """Show a schedule and its next ticks."""
    with connect(context) as client:
        _show(client.schedule(name), as_json)


@schedules.command("next")
def next_ticks(
    context: typer.Context,
    name: Name,
    count: Annotated[int, typer.Option("-n", min=1, max=100, help="How many.")] = 5,
    as_json: JsonFlag = False,
) -> None:
    """Print the next ticks, before jitter."""
    with connect(context) as client:
        found = client.schedule(name, ahead=count)
    if as_json:
        print_json(found["next"])
        return
    if not found["next"]:
        note(_next(found))
    for moment in found["next"]:
        typer.echo(_shown(moment, found["timezone"]))


@schedules.command()
def delete(context: typer.Context, name: Name) -> None:
    """Forget a schedule. Jobs that it submitted go on."""
    with connect(context) as client:
        client.delete_schedule(name)
    note(f"{name} is deleted")


@schedules.command()
def run(context: typer.Context, name: Name, as_json: JsonFlag = False) -> None:
    """Submit a schedule's job now, beside its ticks; print its id."""
    with connect(context) as client:
        job = client.run_schedule(name)
    if as_json:
        print_json(job)
    else:
        typer.echo(job["id"])


@schedules.command()
def pause(context: typer.Context, name: Name, as_json: JsonFlag = False) -> None:
    """Fire nothing until it is resumed."""
    with connect(context) as client:
        _show(client.pause_schedule(name), as_json)


@schedules.command()
def resume(context: typer.Context, name: Name, as_json: JsonFlag = False) -> None:
    """Fire again, from the next tick on."""
    with connect(context) as client:
        _show(client.resume_schedule(name), as_json)


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.add_typer(schedules, name="schedule")


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _show(found: "Json", as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    zone = found["timezone"]
    rows: list[tuple[str, Any]] = [
        ("name", found["name"]),
        ("cron", f"{found['cron']} ({zone})"),
        ("type", found["job"]["type"]),
        ("catch up", found["catch_up"]),
        ("overlap", found["overlap"]),
    ]
    if found["jitter_s"]:
        rows.append(("jitter", f"to {found['jitter_s']:g} s"))
    rows += [
        (label, _shown(found[field], zone))
        for label, field in (("starts", "starts_at"), ("ends", "ends_at"))
        if found[field]
    ]
    if not found["next"]:
        rows.append(("next", _next(found)))
    rows += [("next", _shown(moment, zone)) for moment in found["next"]]
    if found["last_at"]:
        rows.append(("last", f"{_shown(found['last_at'], zone)} ({age(found['last_at'])} ago)"))
    if found["last_job"]:
        rows.append(("last job", found["last_job"]))
    rows += [("fired", found["fired"]), ("skipped", found["skipped"])]
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        typer.echo(f"{label.ljust(width)}  {value}")


def _next(found: "Json") -> str:
    if found["next"]:
        return _shown(found["next"][0], found["timezone"])
    return "paused" if found["paused"] else "never again"


def _shown(moment: str, zone: str) -> str:
    """Return the moment as clocks show it there; in UTC if this machine does not know the zone."""
    at = datetime.fromisoformat(moment)
    try:
        at = at.astimezone(ZoneInfo(zone))
    except ZoneInfoNotFoundError:
        pass  # newer than this machine's
    return at.isoformat(" ", "seconds")
