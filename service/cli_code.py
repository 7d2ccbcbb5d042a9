"""Commands for whoever brings code to a running Drayman, and what `submit --jobs` shares with them.

Rule 1: modules are looked for in the working directory first, as with `drayman up --jobs`. Rule 2:
code that is there already is not sent again.
"""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli_show import EXIT_USAGE, JsonFlag, complain, connect, note, print_json, print_table

if TYPE_CHECKING:
    from cluster.bundle import Bundle
    from service.client import Client

__all__ = ["bundle_of", "register", "send"]

SHA_CHARS_SHOWN = 12


def deploy(
    context: typer.Context,
    modules: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODULE]...", help="Modules with job types, and what they import."),
    ] = None,
    withdraw: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE",
            help="Give a type back to what the cluster was started with; repeatable.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run new jobs with the code of these modules; without any, show what is deployed.

    Jobs that were submitted before finish with the code they had.
    """
    if modules and withdraw:
        raise typer.BadParameter("give modules or --withdraw, not both")
    if withdraw:
        _withdraw(context, withdraw, as_json)
        return
    if not modules:
        with connect(context) as client:
            deployed = client.deployed()
        if as_json:
            print_json(deployed)
        else:
            rows = [[name, sha[:SHA_CHARS_SHOWN]] for name, sha in sorted(deployed.items())]
            print_table(["TYPE", "CODE"], rows, "nothing is deployed")
        return
    bundle = bundle_of(modules)
    with connect(context, waits=True) as client:
        send(client, bundle)
        done = client.deploy(bundle.sha)
    if as_json:
        print_json(done)
        return
    for name in done["types"]:
        note(f"{name} runs {done['code'][:SHA_CHARS_SHOWN]}")
    typer.echo(done["code"])


def _withdraw(context: typer.Context, types: list[str], as_json: bool) -> None:
    with connect(context) as client:
        known = {*client.deployed(), *(kind["name"] for kind in client.types())}
        for name in types:
            if name not in known:
                complain(f"there is no type {name}; `drayman deploy` shows what is deployed")
                raise typer.Exit(EXIT_USAGE)
        done = client.deploy("", types)
        left = {kind["name"]: kind["code"] for kind in client.types()}
    if as_json:
        print_json(done)
        return
    for name in done["types"]:
        if name not in left:
            note(f"{name} is gone: the cluster was not started with it")
        elif left[name]:  # said by a replica that has not looked since
            note(f"{name} is withdrawn")
        else:
            note(f"{name} runs what the cluster was started with")


def bundle_of(modules: list[str]) -> "Bundle":
    """Return the modules as a bundle; exit with what is wrong with them."""
    from cluster.bundle import make_bundle
    from jobs.errors import InvalidInput

    try:
        return make_bundle(modules, [os.getcwd(), *sys.path])
    except InvalidInput as error:
        complain(error.reason)
        raise typer.Exit(2) from None


def send(client: "Client", bundle: "Bundle") -> None:
    """Send the bundle, unless it is there."""
    from service.client import ApiError

    try:
        client.code(bundle.sha)
    except ApiError as error:
        if error.kind != "not-found":
            raise
        client.put_code(bundle.data)


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command()(deploy)
