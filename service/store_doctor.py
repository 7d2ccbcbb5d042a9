"""Is a store whole, and could Drayman start on it? The findings of `drayman doctor --store`.

Rule 1: it changes nothing. Rule 2: what may keep the store from answering is said before it is
asked. Rule 3: what people and programs read is the same; programs get the numbers, too.
"""

import os
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

import httpx

from cluster.store.objects import Objects, open_store
from cluster.survey import survey
from jobs.errors import DraymanError
from service.deployment import store_url
from service.doctor import Finding
from service.runfile import RunFile, RunFolder, is_alive, state_dir

__all__ = ["examine_store"]

#: Any of these lets a request to S3 be signed, or go unsigned; the files in ~/.aws are not read.
AWS_PAIR = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
AWS_OTHER = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
#: How long a running Drayman may take to say on which nodes it works.
ASK_S = 2.0


def examine_store(
    url: str, journal: str | None = None, environment: Mapping[str, str] = os.environ
) -> Iterator[Finding]:
    """Look at everything in a store; yield what was found, as it is found.

    Raises InvalidInput where the URL names no store.
    """
    yield from _credentials(url, environment)
    store = open_store(url, read_only=True)
    beside = open_store(journal, read_only=True) if journal is not None else None
    yield from _folder(store)
    yield from _nodes(url)
    try:
        for seen in survey(store, beside):
            yield Finding(seen.path, seen.level, seen.text, seen.facts)
    except DraymanError as error:
        yield Finding(store.url, "wrong", str(error))


def _credentials(url: str, environment: Mapping[str, str]) -> Iterator[Finding]:
    if urlsplit(url).scheme != "s3":
        return
    given = [name for name in AWS_PAIR if environment.get(name)]
    if len(given) == 1:
        missing = next(name for name in AWS_PAIR if name not in given)
        yield Finding("credentials", "wrong", f"{given[0]} is set but {missing} is not; set both")
    elif not given and not any(environment.get(name) for name in AWS_OTHER):
        yield Finding(
            "credentials",
            "note",
            f"none in the environment: set {' and '.join(AWS_PAIR)} (files in ~/.aws are not "
            "read); now the machine's metadata address is asked, which only EC2 has",
        )


def _folder(store: Objects) -> Iterator[Finding]:
    folder = store.local_path("journal")
    if folder is None:
        return
    root = folder.parent
    if not os.access(root, os.W_OK) or os.statvfs(root).f_flag & os.ST_RDONLY:
        text = "can't be written by this user: `drayman up` refuses it"
        yield Finding(str(root), "wrong", text)


def _nodes(url: str) -> Iterator[Finding]:
    """Tell of a folder that work runs beside, on other nodes."""
    mine = store_url(url)
    if urlsplit(mine).scheme != "file":
        return
    for run in RunFolder(state_dir()).all():
        if not is_alive(run.driver) or store_url(run.store) != mine:
            continue
        nodes = _nodes_of(run)
        if len(nodes) > 1:
            text = f"the Drayman at {run.url} works on {len(nodes)} nodes; mount it on each"
            yield Finding(url, "note", text)


def _nodes_of(run: RunFile) -> set[str]:
    try:
        with open(run.token_path) as file:
            token = file.read().strip()
        answer = httpx.get(
            f"{run.url}/v1/workers",
            headers={"Authorization": f"Bearer {token}"},
            timeout=ASK_S,
            trust_env=False,
        )
        return {worker["node"] for worker in answer.raise_for_status().json()["workers"]}
    except (OSError, httpx.HTTPError, ValueError, KeyError, TypeError):
        return set()  # it says nothing: there is nothing to tell
