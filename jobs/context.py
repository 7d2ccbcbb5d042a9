"""All a handler may touch: one `Context` per attempt.

Rule 1: a handler sees Drayman only through this class, so it runs the same on a worker and in a
plain test (`jobs.testing`). Rule 2: every call that says "durable" returns only once it is.
Rule 3: `progress`, `checkpoint`, `once` and `check` raise `StopRequested` once a stop was asked
for (cancel, time limit, drain): a handler that calls any of them is stoppable without more code.
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from jobs.endpoint import Endpoint
from jobs.errors import InvalidInput
from jobs.outcome import StopRequested

__all__ = ["Context", "Files", "InDoubt", "Runtime", "StopRequested"]

#: What `once` does when an earlier attempt claimed the key and died before recording the outcome.
InDoubt = Literal["repeat", "skip", "fail"]


class Runtime(Protocol):
    """What carries a context: a worker's child process, or a test's scripted stand-in."""

    def progress(self, fraction: float | None, message: str) -> None:
        """Show progress; throttled, never durable."""

    def stop_reason(self) -> str | None:
        """Return why this attempt should stop, or None."""

    def checkpoint(self, value: Any) -> None:
        """Make `value` durable as the place to resume from. Raise LeaseLost if superseded."""

    def once_claim(self, key: str) -> tuple[Literal["new", "done", "in_doubt"], Any]:
        """Claim `key` durably for this task; return the state found and any recorded value."""

    def once_done(self, key: str, value: Any) -> None:
        """Record durably that the effect `key` happened with `value`."""

    def submit(self, type: str, params: Any, options: dict[str, Any]) -> str:
        """Keep a job to be submitted with the attempt's completion; return its id."""

    def secret(self, name: str) -> str:
        """Return the secret, and redact it from whatever leaves this attempt."""

    def endpoint(self, name: str) -> Endpoint:
        """Return the tenant's endpoint, and redact its secrets as `secret` does."""

    def disable_endpoint(self, name: str, reason: str) -> None:
        """Note durably that the tenant's endpoint is to get nothing more."""

    def log(self, message: str) -> None:
        """Append one line to the attempt's log."""

    def open_output(self, name: str, ephemeral: bool = False) -> BinaryIO:
        """Open an output file of this attempt for writing; durable, or held, once closed."""

    def fetch(self, uri: str, into: Path) -> Path:
        """Copy what `uri` names into the directory `into` and return its path."""

    def open(self, uri: str) -> BinaryIO:
        """Open what `uri` names for reading: seekable, and only what is read is brought."""

    def may_read(self, path: Path) -> bool:
        """Whether params may name this path of the worker's own disk."""

    def may_write(self, path: Path) -> bool:
        """Whether params may name this path to write to."""


class Files:
    """Files of one attempt: inputs by URI, outputs by name, scratch space that goes with it."""

    def __init__(self, runtime: Runtime, workdir: Path, task: str) -> None:
        self._runtime = runtime
        #: Scratch directory of this attempt; removed when it ends.
        self.workdir = workdir
        #: `<job>/<task>`, whose outputs these are.
        self._task = task

    def uri(self, name: str) -> str:
        """Return the URI of this task's output `name`: for others to `fetch`, in this job or later.

        It stays right when the task is run again.
        """
        return f"output:{self._task}/{name}"

    def open_output(self, name: str, *, ephemeral: bool = False) -> BinaryIO:
        """Open the output file `name` for writing bytes; durable when closed.

        `ephemeral` is for what only later tasks of the same job read: held in the cluster's memory
        and not in the store, which is cheaper. It cannot be downloaded, it goes when the job has
        ended, and if its node goes before, this task runs again to make it: so only where each run
        makes the same, and has no effect that must not be repeated. Where there is no room for it,
        it is stored like any other.

        Raises InvalidInput for a name that is not a plain file name, and when an ephemeral file is
        closed that is too large to be one.
        """
        return self._runtime.open_output(name, ephemeral)

    def save(self, path: Path, name: str | None = None, *, ephemeral: bool = False) -> str:
        """Keep the file at `path` as the output `name`, durable on return; return its URI.

        `ephemeral`: see `open_output`.
        """
        name = name or path.name
        with path.open("rb") as source, self.open_output(name, ephemeral=ephemeral) as output:
            while block := source.read(1 << 20):
                output.write(block)
        return self.uri(name)

    def write(self, name: str, data: bytes, *, ephemeral: bool = False) -> str:
        """Keep `data` as the output file `name`, durable on return; return its URI.

        `ephemeral`: see `open_output`.
        """
        with self.open_output(name, ephemeral=ephemeral) as output:
            output.write(data)
        return self.uri(name)

    def local(self, path: str) -> Path:
        """Return the worker's own file or folder `path`, links resolved.

        Params come from whoever may submit, so paths in them reach only the folders the operator
        opened (`drayman up --data-dir`). Raises InvalidInput for any other.
        """
        resolved = Path(path).expanduser().resolve()
        if not self._runtime.may_read(resolved):
            raise InvalidInput(
                "path",
                f"{path!r} is outside the folders that jobs may read; upload the file, or start "
                "Drayman with --data-dir",
            )
        return resolved

    def target(self, path: str) -> Path:
        """Return the worker's own folder `path`, links resolved, for a handler to write into.

        As `local`, of the folders that the operator opened for it (`drayman up --output-dir`).
        What lies there is not Drayman's: write under names that a retry writes again.
        """
        resolved = Path(path).expanduser().resolve()
        if not self._runtime.may_write(resolved):
            raise InvalidInput(
                "path",
                f"{path!r} is outside the folders that jobs may write to; start Drayman with "
                "--output-dir",
            )
        return resolved

    def fetch(self, uri: str) -> Path:
        """Return a local path that holds what `uri` names (`upload:`, `output:`, `s3:`, ...).

        Only read it: a `file:` is the very file. An output that is gone, or not what it was when it
        was made, ends the attempt, uncharged; the task that made it runs again, then this one.
        """
        return self._runtime.fetch(uri, self.workdir)

    def open(self, uri: str) -> BinaryIO:
        """Open what `uri` names for reading, seekable: for a part of a large file; else as `fetch`.

        A store is asked for the ranges that are read, so read in blocks.
        """
        return self._runtime.open(uri)


class Context:
    """What a handler receives as its first argument."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        job_id: str,
        task_id: str,
        attempt: int,
        tenant: str,
        labels: dict[str, str],
        workdir: Path,
        checkpoint: Any = None,
        scheduled_for: datetime | None = None,
        traceparent: str | None = None,
    ) -> None:
        self._runtime = runtime
        self.job_id = job_id
        self.task_id = task_id
        #: Numbered from 1; a retry sees 2.
        self.attempt = attempt
        self.tenant = tenant
        self.labels = labels
        #: What the last accepted `checkpoint` of any earlier attempt held, or None.
        self.resumed_from = checkpoint
        #: The tick of the schedule that submitted the job, with time zone; None if none did.
        self.scheduled_for = scheduled_for
        #: W3C trace context of this attempt, for spans of your own and for calls to others.
        self.traceparent = traceparent
        self.files = Files(runtime, workdir, f"{job_id}/{task_id}")

    @property
    def cancelled(self) -> bool:
        """Whether a stop was asked for. Cheap: poll it in tight loops."""
        return self._runtime.stop_reason() is not None

    def check(self) -> None:
        """Raise StopRequested if a stop was asked for."""
        reason = self._runtime.stop_reason()
        if reason is not None:
            raise StopRequested(reason)

    def progress(self, fraction: float | None = None, message: str = "") -> None:
        """Show how far the attempt is: `fraction` in 0..1, a short `message`, or both."""
        self.check()
        if fraction is not None:
            fraction = min(1.0, max(0.0, float(fraction)))
        self._runtime.progress(fraction, message)

    def checkpoint(self, value: Any, *, stopping: bool = False) -> None:
        """Save a JSON value that the next attempt finds in `resumed_from`. Durable on return.

        With `stopping` it is saved also once a stop was asked for: for what has just been done and
        must not be done again. Raises LeaseLost when another attempt has taken over: stop then.
        """
        if not stopping:
            self.check()
        self._runtime.checkpoint(value)

    def once(self, key: str, effect: Callable[[str], Any], *, in_doubt: InDoubt = "fail") -> Any:
        """Run `effect(idempotency_key)` unless an attempt of this task already did.

        A durable claim comes first, a durable record after, and the recorded JSON value is what
        later attempts get. If an attempt died between the two nobody knows whether the effect
        happened: `in_doubt` says whether to `repeat` it, `skip` it (returns None) or `fail`
        (raises RuntimeError). The key passed to `effect` is the same on every attempt: hand it to
        services that deduplicate.
        """
        self.check()
        found, value = self._runtime.once_claim(key)
        if found == "done":
            return value
        if found == "in_doubt":
            if in_doubt == "skip":
                return None
            if in_doubt == "fail":
                raise RuntimeError(
                    f"once({key!r}): an earlier attempt may or may not have done this; "
                    "choose in_doubt='repeat' or 'skip', or check by hand and retry the job"
                )
        value = effect(f"{self.job_id}:{self.task_id}:{key}")
        self._runtime.once_done(key, value)
        return value

    def submit(self, type: str, params: Any = None, **options: Any) -> str:
        """Submit another job once this attempt has succeeded, and return the id it will have.

        Both are committed together or neither is, so a retry submits nothing twice. `params` is a
        pydantic model or JSON data; `options` are those of `POST /v1/jobs` (`queue`, `priority`,
        `delay_s`, `labels`, ...). Raises InvalidInput for an unknown type, params that do not fit,
        or more jobs than one attempt may submit: then fan out. A task that is made again because
        its output was lost submits nothing again.
        """
        self.check()
        return self._runtime.submit(type, params, options)

    def log(self, message: str) -> None:
        """Append a line to this attempt's log. `print` lands there too."""
        self._runtime.log(message)

    def secret(self, name: str) -> str:
        """Return the worker's secret `name`; it is redacted from logs, errors and results.

        Raises InvalidInput naming the secret and where to set it when it is missing.
        """
        return self._runtime.secret(name)

    def endpoint(self, name: str) -> Endpoint:
        """Return the tenant's webhook endpoint `name`; its secrets are redacted like `secret`.

        `default` has no URL: its secrets sign what goes to URLs that jobs name, and are made when
        they are first asked for. Raises NotFound for any other that is not there.
        """
        return self._runtime.endpoint(name)

    def disable_endpoint(self, name: str, reason: str) -> None:
        """Send nothing more to the tenant's endpoint `name` until it is put again. Durable."""
        self._runtime.disable_endpoint(name, reason)
