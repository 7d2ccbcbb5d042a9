"""Commands for whoever submits jobs."""

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli_code import bundle_of, send
from service.cli_show import (
    EXIT_FAILED,
    EXIT_USAGE,
    JobId,
    JsonFlag,
    age,
    connect,
    note,
    print_json,
    print_table,
    saving,
    seconds,
    show_job,
)
from service.cli_watch import wait_for

__all__ = [
    "JobType",
    "Label",
    "MaxAttempts",
    "Modules",
    "Notify",
    "Param",
    "Params",
    "Priority",
    "Queue",
    "Timeout",
    "Webhook",
    "given_params",
    "pairs",
    "register",
    "targets",
]


JobType = Annotated[str, typer.Argument(help="The job type; `drayman types` lists them.")]
Params = Annotated[
    str | None, typer.Option(help="A JSON object, @FILE that holds one, or - for stdin.")
]
Param = Annotated[
    list[str] | None, typer.Option(help="name=value, repeatable; JSON where it is JSON.")
]
Queue = Annotated[str | None, typer.Option(help="The queue to wait in.")]
Priority = Annotated[int | None, typer.Option(help="Higher starts first.")]
Timeout = Annotated[str | None, typer.Option(help="Stop an attempt that runs longer: 90, 5m, 2h.")]
MaxAttempts = Annotated[int | None, typer.Option(help="How often to try.")]
Label = Annotated[list[str] | None, typer.Option(help="name=value, repeatable.")]
Webhook = Annotated[
    list[str] | None,
    typer.Option(
        metavar="URL", help="Call it, or an endpoint, when the job completes or fails; repeatable."
    ),
]
Notify = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TARGET",
        help="email:ADDRESS, webhook:URL or push:@FILE; to tell them of other events, "
        "failed,cancelled=email:ADDRESS; repeatable.",
    ),
]
Modules = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODULE", help="Run it with the code of this module, from here; repeatable."
    ),
]


def submit(
    context: typer.Context,
    type: JobType,
    params: Params = None,
    param: Param = None,
    key: Annotated[
        str | None, typer.Option(help="Idempotency key: the same key gives the same job.")
    ] = None,
    queue: Queue = None,
    priority: Priority = None,
    delay: Annotated[
        str | None, typer.Option(help="Start no sooner than this: 90, 5m, 2h.")
    ] = None,
    run_at: Annotated[
        str | None, typer.Option(help="Start no sooner than this moment (RFC 3339).")
    ] = None,
    timeout: Timeout = None,
    expires_at: Annotated[
        str | None, typer.Option(help="Cancel it if not started by this moment (RFC 3339).")
    ] = None,
    queue_timeout: Annotated[
        str | None, typer.Option(help="Cancel it if not started after this: 90, 5m, 2h.")
    ] = None,
    grace: Annotated[
        str | None, typer.Option(help="Kill it so long after a stop was asked for.")
    ] = None,
    expected: Annotated[
        str | None, typer.Option(help="How long it will run, about: 90, 5m, 2h.")
    ] = None,
    limit: Annotated[
        list[str] | None, typer.Option(help="A key of a limit it counts against; repeatable.")
    ] = None,
    max_attempts: MaxAttempts = None,
    label: Label = None,
    webhook: Webhook = None,
    notify: Notify = None,
    jobs: Modules = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the end; exit 1 if it fails.")
    ] = False,
    cancel_on_interrupt: Annotated[
        bool, typer.Option("--cancel-on-interrupt", help="With --wait: Ctrl-C cancels the job.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Submit a job; print its id once it is durable."""
    options: dict[str, Any] = {
        "queue": queue,
        "priority": priority,
        "run_at": run_at,
        "delay_s": None if delay is None else seconds(delay),
        "timeout_s": None if timeout is None else seconds(timeout),
        "expires_at": expires_at,
        "queue_timeout_s": None if queue_timeout is None else seconds(queue_timeout),
        "grace_s": None if grace is None else seconds(grace),
        "expected_s": None if expected is None else seconds(expected),
        "limits": limit or None,
        "max_attempts": max_attempts,
        "labels": pairs(label, "--label") or None,
        "notify": targets(webhook, notify) or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    everything = given_params(params, param)
    bundle = bundle_of(jobs) if jobs else None
    with connect(context, waits=wait) as client:
        if bundle is not None:
            send(client, bundle)
            given["code"] = bundle.sha
        job = client.submit(type, everything, key=key, **given)
        if wait:
            if not as_json:
                note(job["id"])
            wait_for(context, client, job["id"], as_json, cancel_on_interrupt)
        elif as_json:
            print_json(job)
        else:
            typer.echo(job["id"])


def status(context: typer.Context, job_id: JobId, as_json: JsonFlag = False) -> None:
    """Show a job."""
    with connect(context) as client:
        job = client.status(job_id)
    if as_json:
        print_json(job)
    else:
        show_job(job)


def result(
    context: typer.Context,
    job_id: JobId,
    files: Annotated[
        Path | None, typer.Option(file_okay=False, help="Also save the job's files here.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print a job's result, and save its files; exit 1 if it failed."""
    from service.client import ApiError

    with connect(context, waits=files is not None) as client:
        try:
            value = client.result(job_id)
        except ApiError as error:
            if error.kind != "conflict":
                raise
            note(f"drayman: {error}")
            ended_badly = client.status(job_id)["finished_at"] is not None
            raise typer.Exit(EXIT_FAILED if ended_badly else EXIT_USAGE) from None
        saved = []
        if files is not None:
            lasting = [file for file in client.files(job_id) if not file.get("ephemeral")]
            with saving(files):
                saved = [str(client.download(file, files)) for file in lasting]
    if as_json:
        print_json({"result": value, "files": saved})
    else:
        print_json(value)
        for path in saved:
            note(path)


def list_jobs(
    context: typer.Context,
    status: Annotated[
        str | None,
        typer.Option(help="scheduled, pending, processing, completed, failed or cancelled."),
    ] = None,
    type: Annotated[str | None, typer.Option(help="Only this job type.")] = None,
    queue: Annotated[str | None, typer.Option(help="Only this queue.")] = None,
    label: Annotated[str | None, typer.Option(help="Only with this label: name=value.")] = None,
    tenant: Annotated[str | None, typer.Option(help="For admins: only this tenant's.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """List jobs, newest first."""
    with connect(context) as client:
        jobs = list(
            client.jobs(
                status=status, type=type, queue=queue, label=label, tenant=tenant, limit=limit
            )
        )
    if as_json:
        print_json(jobs)
        return
    rows = [
        [job["id"], job["type"], job["status"], job["queue"], age(job["submitted_at"])]
        for job in jobs
    ]
    print_table(["ID", "TYPE", "STATUS", "QUEUE", "AGE"], rows, "no such jobs")


def cancel(context: typer.Context, job_id: JobId, as_json: JsonFlag = False) -> None:
    """Stop a job: asked first, then by force."""
    with connect(context) as client:
        job = client.cancel(job_id)
    if as_json:
        print_json(job)
    else:
        typer.echo("stopping" if job["stopping"] else job["status"])


def retry(context: typer.Context, job_id: JobId, as_json: JsonFlag = False) -> None:
    """Redrive a failed job: give it a new budget of attempts."""
    with connect(context) as client:
        job = client.retry(job_id)
    if as_json:
        print_json(job)
    else:
        typer.echo(job["status"])


def types(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List the job types, your own first; with --json, the JSON Schemas of their params."""
    with connect(context) as client:
        found = client.types()
    if as_json:
        print_json(found)
        return
    own = [kind for kind in found if not kind["builtin"]]
    _show_types("YOUR OWN TYPE", own, "no job types of your own")
    if own:
        typer.echo()
    _show_types("BUILT-IN TYPE", [kind for kind in found if kind["builtin"]], "none built in")


def _show_types(title: str, kinds: list[dict[str, Any]], nothing: str) -> None:
    rows = [[kind["name"], kind["queue"], _fields(kind), kind["summary"]] for kind in kinds]
    print_table([title, "QUEUE", "PARAMS", "WHAT IT DOES"], rows, nothing)


def upload(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The file.")],
    name: Annotated[str | None, typer.Option(help="Its name there; else its own.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Store a file; print the URI to put into params."""
    with connect(context, waits=True) as client:
        stored = client.upload(path, name)
    if as_json:
        print_json(stored)
    else:
        typer.echo(stored["uri"])


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    for command in (submit, status, result, cancel, retry, types, upload):
        app.command()(command)
    app.command("list")(list_jobs)


def given_params(
    text: str | None, param: list[str] | None, option: str = "--param"
) -> dict[str, Any]:
    """Return what `--params` and all of `--param`, or an option like it, say together."""
    single = {name: _value(value) for name, value in pairs(param, option).items()}
    return ({} if text is None else _object(text, "--params")) | single


def targets(webhook: list[str] | None, notify: list[str] | None) -> list[dict[str, Any]]:
    """Return whom `--notify` and `--webhook` say to tell, as the API's `notify` has it."""
    return [*map(_target, notify or ()), *({"webhook": whom} for whom in webhook or ())]


def _target(text: str) -> dict[str, Any]:
    # Events have no colon; a URL, which may have a `=`, comes after one.
    found = re.fullmatch(r"(?:([^:=]*)=)?(email|webhook|push):(.+)", text, re.DOTALL)
    if found is None:
        raise typer.BadParameter(
            f"--notify {text!r}: write email:ADDRESS, webhook:URL or push:@FILE, "
            "maybe with events before it: started,failed=email:ADDRESS"
        )
    events, way, whom = found.groups()
    on = {} if events is None else {"on": _listed(events)}
    if way == "email":
        return {**on, way: _listed(whom)}
    return {**on, way: _object(whom, "--notify push") if way == "push" else whom}


def _listed(text: str) -> list[str]:
    return [one.strip() for one in text.split(",")]


def _object(text: str, option: str) -> dict[str, Any]:
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        try:
            text = Path(text[1:]).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"{option}: {error}") from None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{option} must be a JSON object")
    return found


def pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    """Return what was given as name=value."""
    found = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{option} {text!r}: write name=value")
        found[name] = value
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _fields(kind: dict[str, Any]) -> str:
    schema = kind["params_schema"]
    required = schema.get("required", [])
    names = schema.get("properties", {})
    return " ".join(name if name in required else f"[{name}]" for name in names)
