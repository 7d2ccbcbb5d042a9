"""Three stores for one suite: in memory, on disk, and S3 as SeaweedFS speaks it."""

import json
import os
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store

from cluster.store.objects import LocalObjects, MemoryObjects, Objects, RemoteObjects

_WEED = Path(__file__).parents[2] / ".venv/bin/weed"
_KEY, _SECRET = "conformance", "conformance-secret"
_START_TRIES, _START_PAUSE_S = 100, 0.2


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A SeaweedFS server on loopback; skipped where it can't start, except in CI."""
    with ExitStack() as stack:
        try:
            endpoint = _start_weed(tmp_path_factory.mktemp("weed"), stack)
        except (OSError, RuntimeError) as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"no SeaweedFS here: {error}")
        yield endpoint


@pytest.fixture
def s3_url(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of its own in the bucket, reachable by the usual variables."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", _KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", _SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return f"s3://conformance/{uuid.uuid4().hex}"


@pytest.fixture(params=["memory", "local", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    """An empty store of each kind."""
    match request.param:
        case "memory":
            return MemoryObjects()
        case "local":
            return LocalObjects(tmp_path / "store")
        case _:
            return RemoteObjects(request.getfixturevalue("s3_url"))


def _start_weed(folder: Path, stack: ExitStack) -> str:
    """Start a server that ends when the stack unwinds; return its endpoint."""
    config = folder / "s3.json"
    credentials = [{"accessKey": _KEY, "secretKey": _SECRET}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "conformance", "credentials": credentials, "actions": actions}
    config.write_text(json.dumps({"identities": [identity]}))
    names = ["master", "volume", "filer", "s3"]
    ports = dict(zip([*names, *(f"{n}.grpc" for n in names)], _free_ports(8), strict=True))
    command = [
        str(_WEED),
        f"-logdir={folder}",
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-s3",
        "-s3.ip.bind=127.0.0.1",
        f"-s3.config={config}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.localSocket={folder}/s3.sock",
        f"-filer.localSocket={folder}/filer.sock",
        "-iam=false",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=20",
        *(f"-{name}.port={ports[name]}" for name in names),
        *(f"-{name}.port.grpc={ports[name + '.grpc']}" for name in names),
    ]
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    stack.callback(_remove_sockets, ports)
    stack.callback(_end, process)
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    _wait_for_bucket(process, endpoint)
    return endpoint


def _end(process: subprocess.Popen[bytes]) -> None:
    # Nothing in there is worth the ten seconds it takes to stop in good order.
    process.kill()
    process.wait()


def _remove_sockets(ports: dict[str, int]) -> None:
    """Remove what weed leaves in /tmp, under names that no flag changes."""
    for name in ("master", "volume", "filer", "s3"):
        Path(f"/tmp/seaweedfs-{name}-grpc-{ports[name + '.grpc']}.sock").unlink(missing_ok=True)


def _wait_for_bucket(process: subprocess.Popen[bytes], endpoint: str) -> None:
    """Return when the server stores an object, which also makes the bucket."""
    bucket = S3Store(
        "conformance",
        endpoint=endpoint,
        access_key_id=_KEY,
        secret_access_key=_SECRET,
        region="us-east-1",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    for _ in range(_START_TRIES):
        try:
            obstore.put(bucket, "ready", b"")
        except BaseError:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_START_PAUSE_S)
                raise RuntimeError(f"weed ended with {process.returncode}") from None
        else:
            return
    raise RuntimeError(f"weed stored nothing in {_START_TRIES * _START_PAUSE_S:g} s")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
