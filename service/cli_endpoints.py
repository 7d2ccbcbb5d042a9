"""Commands for whoever receives webhooks: where they go, and what signs them."""

from typing import TYPE_CHECKING, Annotated

import typer

from service.cli_show import JsonFlag, connect, note, print_json, print_table

if TYPE_CHECKING:
    from service.client import Json

__all__ = ["register"]

endpoints = typer.Typer(
    no_args_is_help=True, help="Webhook endpoints: where they lead, secrets, tests."
)

Name = Annotated[str, typer.Argument(help="Of the endpoint; a-z, 0-9, '-' and '_'.")]


@endpoints.command("list")
def list_endpoints(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List the endpoints of your tenant."""
    with connect(context) as client:
        found = client.endpoints()
    if as_json:
        print_json(found)
        return
    rows = [
        [one["name"], one["url"], one["disabled"] or "", (one["secrets"] or [""])[0]]
        for one in found
    ]
    print_table(["NAME", "URL", "DISABLED", "SECRET OF"], rows, "there are no endpoints")


@endpoints.command("put")
def put_endpoint(
    context: typer.Context,
    name: Name,
    url: Annotated[str, typer.Argument(help="Where it leads; none for `default`.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Let webhooks to this name go to a URL; print the secret of a new one."""
    with connect(context) as client:
        found = client.put_endpoint(name, url)
    _show(found, as_json)


@endpoints.command("rotate")
def rotate_endpoint(context: typer.Context, name: Name, as_json: JsonFlag = False) -> None:
    """Make a new secret and print it; the old one signs too for another day."""
    with connect(context) as client:
        found = client.rotate_endpoint(name)
    _show(found, as_json)


@endpoints.command("test")
def try_endpoint(context: typer.Context, name: Name, as_json: JsonFlag = False) -> None:
    """Send a test event; print the id of the job that delivers it."""
    with connect(context) as client:
        job = client.test_endpoint(name)
    if as_json:
        print_json(job)
    else:
        typer.echo(job["id"])


@endpoints.command("delete")
def delete_endpoint(context: typer.Context, name: Name) -> None:
    """Forget an endpoint and its secrets."""
    with connect(context) as client:
        client.delete_endpoint(name)
    note(f"{name} is gone")


def _show(found: "Json", as_json: bool) -> None:
    if as_json:
        print_json(found)
    elif "secret" in found:
        note("keep this secret: it is not shown again")
        typer.echo(found["secret"])
    else:
        note(f"{found['name']} leads to {found['url'] or 'any URL that a job names'}")


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.add_typer(endpoints, name="endpoints")
