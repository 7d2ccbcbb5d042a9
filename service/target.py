"""Which Drayman the client and the command line talk to.

Rule 1: what is given wins over the environment, that over what `drayman up` left on this machine.
Rule 2: a token found on this machine goes to the URL it was found with and to no other.
Rule 3: nothing heavy is imported here: commands must start at once.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["DEFAULT_PORT", "NoTarget", "Target", "find_target"]

DEFAULT_PORT = 8000
URL_ENV, TOKEN_ENV, HOME_ENV = "DRAYMAN_URL", "DRAYMAN_TOKEN", "DRAYMAN_HOME"


class NoTarget(Exception):
    """There is nothing to talk to; the text says how to name it."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send requests, and the right to."""

    url: str
    token: str


def find_target(
    url: str | None = None,
    token: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Target:
    """Return the Drayman to talk to. Raises NoTarget."""
    url = url or environment.get(URL_ENV) or None
    token = (token or environment.get(TOKEN_ENV) or "").strip() or None
    if token is not None and not (token.isascii() and token.isprintable()):
        raise NoTarget(f"no token has such characters; look at {TOKEN_ENV} or --token")
    if url is not None:
        _refuse_no_url(url)
    if url is not None and token is not None:
        return Target(url.rstrip("/"), token)
    runs = _running(environment)
    if url is not None:
        found = next((run for run in runs if run.url == url.rstrip("/")), None)
        if found is None:
            if url.rstrip("/") in _starting(environment):
                raise NoTarget(f"the Drayman at {url} is starting; try again when it says its url")
            raise NoTarget(
                f"no Drayman of yours runs at {url}; for another's set {TOKEN_ENV}, or give --token"
            )
        return found
    if not runs:
        raise NoTarget(f"no Drayman runs here; start one with `drayman up`, or set {URL_ENV}")
    if len(runs) > 1:
        preferred = [run for run in runs if run.url.endswith(f":{DEFAULT_PORT}")]
        if not preferred:
            urls = ", ".join(run.url for run in runs)
            raise NoTarget(f"several run here ({urls}); choose with --url or {URL_ENV}")
        runs = preferred
    return Target(runs[0].url, token or runs[0].token)


def _refuse_no_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one:
        raise NoTarget(f"{url!r} is no URL; write http://HOST:PORT in {URL_ENV} or --url")


def _running(environment: Mapping[str, str]) -> list[Target]:
    """Return what `drayman up` recorded (`service.runfile`) and still runs, by port."""
    found = map(_target, _records(environment))
    return [target for target in found if target is not None]


def _records(environment: Mapping[str, str]) -> list[Path]:
    home = Path(environment.get(HOME_ENV) or Path.home() / ".drayman")
    paths = [path for path in (home / "run").glob("*.json") if path.stem.isdigit()]
    return sorted(paths, key=lambda path: int(path.stem))


def _starting(environment: Mapping[str, str]) -> set[str]:
    """Return the URLs of those that are not ready yet."""
    found = set()
    for path in _records(environment):
        try:
            run = json.loads(path.read_bytes())
            if not run["ready"] and _is_alive(run["driver"]["pid"]):
                found.add(run["url"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _target(path: Path) -> Target | None:
    try:
        run = json.loads(path.read_bytes())
        if not run["ready"] or not _is_alive(run["driver"]["pid"]):
            return None
        return Target(run["url"], Path(run["token_path"]).read_text().strip())
    except (OSError, ValueError, KeyError, TypeError):
        return None  # half written, or of another version: as good as none


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it lives, as another user
    return True
