"""A real S3 on loopback: SeaweedFS, which a test may kill and start again on the same data."""

import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

__all__ = ["BUCKET_ENV", "Weed", "started"]

#: A URL beneath which each live Drayman keeps its store, instead of a folder.
BUCKET_ENV = "DRAYMAN_TEST_BUCKET"

BUCKET = "conformance"
_KEY, _SECRET, _REGION = "conformance", "conformance-secret", "us-east-1"
_START_TRIES, _START_PAUSE_S = 300, 0.2
_NAMES = ("master", "volume", "filer", "s3")


class Weed:
    """One server: its data in a folder, its ports its own for good."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = dict(
            zip([*_NAMES, *(f"{n}.grpc" for n in _NAMES)], _free_ports(8), strict=True)
        )
        self._process: subprocess.Popen[bytes] | None = None
        config = folder / "s3.json"
        credentials = [{"accessKey": _KEY, "secretKey": _SECRET}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": BUCKET, "credentials": credentials, "actions": actions}
        config.write_text(json.dumps({"identities": [identity]}))

    @property
    def environment(self) -> dict[str, str]:
        """What tells any process of this server."""
        return {
            "AWS_ENDPOINT_URL": self._endpoint,
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_REGION": _REGION,
        }

    @property
    def _endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports['s3']}"

    def url(self) -> str:
        """Return a folder of its own in the bucket."""
        return f"s3://{BUCKET}/{uuid.uuid4().hex}"

    def start(self) -> None:
        """Start it, and return when it stores objects. Raises OSError or RuntimeError."""
        with (self._folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdout=log, stderr=log, cwd=self._folder
            )
        try:
            self._wait_for_bucket(self._process)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """`kill -9`; its data stay."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        # What weed leaves in /tmp, under names that no flag changes.
        for name in _NAMES:
            path = Path(f"/tmp/seaweedfs-{name}-grpc-{self._ports[name + '.grpc']}.sock")
            path.unlink(missing_ok=True)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Let it answer nothing within the block: connections stay open, and hang."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _command(self) -> list[str]:
        folder, ports = self._folder, self._ports
        return [
            str(Path(sys.executable).parent / "weed"),
            f"-logdir={folder}",
            "server",
            f"-dir={folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-s3",
            "-s3.ip.bind=127.0.0.1",
            f"-s3.config={folder}/s3.json",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.localSocket={folder}/s3.sock",
            f"-filer.localSocket={folder}/filer.sock",
            "-iam=false",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=20",
            *(f"-{name}.port={ports[name]}" for name in _NAMES),
            *(f"-{name}.port.grpc={ports[name + '.grpc']}" for name in _NAMES),
        ]

    def _wait_for_bucket(self, process: subprocess.Popen[bytes]) -> None:
        """Return when it stores an object, which also makes the bucket."""
        bucket = S3Store(
            BUCKET,
            endpoint=self._endpoint,
            access_key_id=_KEY,
            secret_access_key=_SECRET,
            region=_REGION,
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


def started(folder: Path) -> Weed | str:
    """Return a server that runs, or why there is none; in CI there must be one."""
    weed = Weed(folder)
    try:
        weed.start()
    except (OSError, RuntimeError) as error:
        if os.environ.get("CI") == "true":
            raise
        return f"no SeaweedFS here: {error}"
    return weed


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
