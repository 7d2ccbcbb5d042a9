"""Commands that start and stop Drayman, and look whether this machine is fit for it."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli_show import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, JsonFlag, complain, print_json
from service.target import DEFAULT_PORT

__all__ = ["register"]

#: Loads the job types as the cluster will, in a process that nothing of it can harm, and prints
#: their names.
CHECK_JOBS = """
import sys
from jobs.errors import InvalidInput
from jobs.registry import Registry
try:
    print(*Registry.load(sys.argv[1:]))
except InvalidInput as error:
    sys.exit(str(error))
"""


def up(
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Where the API listens.")
    ] = DEFAULT_PORT,
    host: Annotated[
        str, typer.Option(help="Open the API, and nothing else, beyond this machine.")
    ] = "127.0.0.1",
    store: Annotated[
        str | None,
        typer.Option(help="A folder or URL (s3://, gs://, az://); ~/.drayman/store/PORT if none."),
    ] = None,
    jobs: Annotated[
        list[str] | None,
        typer.Option(help="Modules with job types; repeatable, or with commas."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Join this Ray (`auto`: the one here) instead of starting one."),
    ] = None,
    edge: Annotated[
        str | None, typer.Option(help="haproxy or proxy; by default the fastest there is.")
    ] = None,
    dashboard: Annotated[
        bool, typer.Option(help="Ray's dashboard, which `ray job submit` needs.")
    ] = True,
    data_dir: Annotated[
        list[Path] | None,
        typer.Option(help="A folder that params may name files in; repeatable. None by default."),
    ] = None,
    output_dir: Annotated[
        list[Path] | None,
        typer.Option(help="One that jobs may also write into; repeatable. None by default."),
    ] = None,
    http_allow: Annotated[
        list[str] | None,
        typer.Option(help="A private network that http.call may reach, like 10.0.0.0/8."),
    ] = None,
    public_url: Annotated[
        str, typer.Option(help="Where people reach it, for links in mails and webhooks.")
    ] = "",
    otlp: Annotated[
        str, typer.Option(help="Send traces to this OpenTelemetry collector (OTLP over HTTP).")
    ] = "",
    config: Annotated[
        Path | None,
        typer.Option(help="Queues, tenants, limits and pools: a drayman.toml."),
    ] = None,
    pool: Annotated[
        list[str] | None,
        typer.Option(help="A setting of a pool, like cpu:memory_limit_mb=2000; repeatable."),
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Processes that answer the API.")] = 1,
    compact_after: Annotated[
        float, typer.Option(min=1.0, help="Seconds until finished jobs go into history.")
    ] = 300.0,
    retention_days: Annotated[
        float | None,
        typer.Option(min=0.0, help="Delete history, results and logs older than this."),
    ] = None,
    take_over: Annotated[
        bool,
        typer.Option("--take-over", help="The cluster that used the store last is gone for good."),
    ] = False,
    shared_mount: Annotated[
        bool,
        typer.Option("--shared-mount", help="Every node of this Ray has the store's folder."),
    ] = False,
    free_space_min_mb: Annotated[
        float, typer.Option(min=0, help="Accept no new work while the disk has less room (MiB).")
    ] = 1024.0,
    detach: Annotated[bool, typer.Option("--detach", help="Return once it is ready.")] = False,
) -> None:
    """Start Drayman; stay until Ctrl-C, then drain."""
    from jobs.errors import DraymanError
    from service import deployment, launch

    modules = [name.strip() for text in jobs or () for name in text.split(",") if name.strip()]
    _check_folder()
    types = _check_jobs(modules)
    try:
        settings = launch.Settings(
            port=port,
            host=host,
            store=store or "",
            jobs=tuple(modules),
            address=address,
            edge=edge,
            ray_dashboard=dashboard,
            take_over=take_over,
            shared_mount=shared_mount,
            free_space_min_mb=free_space_min_mb,
            config=config,
            http_allow=",".join(http_allow or ()),
            public_url=public_url,
            otlp=otlp,
            pools=tuple(pool or ()),
            replicas=replicas,
            compact_after_s=compact_after,
            retention_days=retention_days,
            data_dirs=tuple(str(folder.expanduser().absolute()) for folder in data_dir or ()),
            output_dirs=tuple(str(folder.expanduser().absolute()) for folder in output_dir or ()),
        )
        if store is None:
            settings = _with_own_store(settings)
        # Here, in a second, rather than after Ray has started; the manager looks once more.
        deployment.check_config(settings)
        deployment.check_store(settings)
        if types:
            _tell_deployed(settings, types, modules)
        complain(f"starting Ray and Drayman on port {port}, which takes a while")
        if detach:
            arguments = [argument for argument in sys.argv[1:] if argument != "--detach"]
            command = [sys.executable, "-m", "service.cli", *arguments]
            raise typer.Exit(launch.detach(command, settings, typer.echo))
        ended = launch.up(settings, deployment.application, deployment.start_cluster, typer.echo)
    except DraymanError as error:
        complain(str(error))
        raise typer.Exit(EXIT_USAGE if error.kind == "invalid" else EXIT_FAILED) from None
    raise typer.Exit(ended)


def down(
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="The port it was started on.")
    ] = DEFAULT_PORT,
) -> None:
    """Stop the Drayman of a port; it drains first. Jobs stay in the store."""
    from jobs.errors import NotFound
    from service import launch

    try:
        typer.echo(launch.down(port))
    except NotFound:
        typer.echo(f"nothing runs on {port}")


def demo(
    folder: Annotated[
        Path, typer.Option(help="Where the demo keeps its data and the report.")
    ] = Path("var/demo"),
) -> None:
    """Make an airline's annual report from 336,776 real flights, with a Drayman of its own."""
    from jobs.errors import DraymanError
    from service.demo import run_demo

    try:
        code = run_demo(folder, typer.echo)
    except DraymanError as error:
        complain(str(error))
        raise typer.Exit(EXIT_USAGE if error.kind == "invalid" else EXIT_FAILED) from None
    raise typer.Exit(code)


def doctor(
    store: Annotated[
        str | None,
        typer.Option(help="Check this store instead, a folder or URL: every object in it."),
    ] = None,
    journal: Annotated[
        str | None, typer.Option(help="Where the store's journal lies, if elsewhere.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check this machine and what runs on it, or a store; exit 1 if something is wrong."""
    from jobs.errors import InvalidInput
    from service.doctor import examine
    from service.store_doctor import examine_store

    shown: list[dict[str, Any]] = []
    is_fit = True
    try:
        for found in examine() if store is None else examine_store(store, journal):
            is_fit = is_fit and found.level != "wrong"
            if as_json:
                facts = {"facts": found.facts} if found.facts else {}
                shown.append(
                    {"check": found.check, "level": found.level, "text": found.text, **facts}
                )
            else:
                typer.echo(f"{found.level.ljust(5)} {found.check}: {found.text}")
    except InvalidInput as error:
        complain(str(error))
        raise typer.Exit(EXIT_USAGE) from None
    if as_json:
        print_json(shown)
    raise typer.Exit(EXIT_DONE if is_fit else EXIT_FAILED)


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    for command in (up, down, demo, doctor):
        app.command()(command)


def _tell_deployed(settings: Any, types: set[str], modules: list[str]) -> None:
    """Say which of the types run other code than that of their modules here."""
    from jobs.errors import DraymanError
    from service import deployment

    try:
        found = deployment.deployed(settings, types)
    except DraymanError as error:  # no reason not to start
        complain(f"which code is deployed can't be read: {error}")
        return
    for name, code in found.items():
        told = f"{name} runs the code that was deployed ({code[:12]}), not that of --jobs"
        complain(f"{told}; to replace it: drayman deploy {' '.join(modules)}")


def _check_folder() -> None:
    """Refuse to start where a module hides Drayman's: Ray puts this folder first in every path."""
    from cluster.code import RESERVED

    here = Path.cwd()
    is_clone = (here / "cluster" / "actors" / "manager.py").exists()
    for name in () if is_clone else sorted(RESERVED):
        for hiding in (here / f"{name}.py", here / name / "__init__.py"):
            if hiding.exists():
                complain(
                    f"{hiding} hides Drayman's own package {name!r}; rename it, or start Drayman "
                    "in another folder"
                )
                raise typer.Exit(EXIT_USAGE)


def _check_jobs(modules: list[str]) -> set[str]:
    """Return the types of modules; refuse to start with one that cannot be imported."""
    from cluster.code import check_module
    from jobs.errors import InvalidInput

    if not modules:
        return set()
    for module in modules:
        if module.endswith(".py"):
            complain(f"--jobs: name a module, not a file: {module.removesuffix('.py')}")
            raise typer.Exit(EXIT_USAGE)
        try:
            check_module(module)
        except InvalidInput as error:
            complain(f"--jobs: {error.reason}")
            raise typer.Exit(EXIT_USAGE) from None
    checked = subprocess.run(
        [sys.executable, "-c", CHECK_JOBS, *modules],
        capture_output=True,
        text=True,
        check=False,
    )
    if checked.returncode:
        complain(checked.stderr.strip())
        raise typer.Exit(EXIT_USAGE)
    return set(checked.stdout.split())


def _with_own_store(settings: Any) -> Any:
    """Return the settings with a folder that belongs to this user and port."""
    from dataclasses import replace

    from service.runfile import make_private

    folder: Path = settings.state / "store" / str(settings.port)
    make_private(folder)
    return replace(settings, store=str(folder))
