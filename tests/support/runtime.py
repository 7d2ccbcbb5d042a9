"""A scripted `Runtime`: carries a handler in a test, in memory, and stops it where told."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

from jobs.context import Context
from jobs.errors import NotFound

__all__ = ["ScriptedRuntime", "a_context"]


class _Output(BytesIO):
    def __init__(self, kept: dict[str, bytes], name: str) -> None:
        super().__init__()
        self._kept, self._name = kept, name

    def close(self) -> None:
        if not self.closed:
            self._kept[self._name] = self.getvalue()
        super().close()


class ScriptedRuntime:
    """Keeps what a handler says; asks it to stop at the nth question if `stop_at` says so."""

    def __init__(
        self, uploads: Mapping[str, Path] | None = None, stop_at: int | None = None
    ) -> None:
        self.reports: list[tuple[float | None, str]] = []
        self.outputs: dict[str, bytes] = {}
        self.lines: list[str] = []
        self.values: dict[str, Any] = {}
        self.checkpoints: list[Any] = []
        self.questions = 0
        self._uploads, self._stop_at = dict(uploads or {}), stop_at

    def progress(self, fraction: float | None, message: str) -> None:
        self.reports.append((fraction, message))

    def stop_reason(self) -> str | None:
        self.questions += 1
        return "cancelled" if self.questions == self._stop_at else None

    def checkpoint(self, value: Any) -> None:
        self.checkpoints.append(value)

    def once_claim(self, key: str) -> tuple[Literal["new", "done", "in_doubt"], Any]:
        return ("done", self.values[key]) if key in self.values else ("new", None)

    def once_done(self, key: str, value: Any) -> None:
        self.values[key] = value

    def secret(self, name: str) -> str:
        raise NotFound("secret", name)

    def log(self, message: str) -> None:
        self.lines.append(message)

    def open_output(self, name: str) -> BinaryIO:
        return _Output(self.outputs, name)

    def fetch(self, uri: str, into: Path) -> Path:
        if uri not in self._uploads:
            raise NotFound("upload", uri)
        return self._uploads[uri]


def a_context(runtime: ScriptedRuntime, workdir: Path) -> Context:
    """Return the context of a first attempt carried by `runtime`."""
    return Context(
        runtime,
        job_id="job-1",
        task_id="task-1",
        attempt=1,
        tenant="default",
        labels={},
        workdir=workdir,
    )
