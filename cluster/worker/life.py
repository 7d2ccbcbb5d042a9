"""One child as its slot holds it: its sockets, board and capture file.

Rule: outcomes that a child left on its board count only as far as they are whole.
"""

import asyncio
import os
import socket
import time
import uuid
from pathlib import Path

import msgspec

from cluster.protocol import Outcome
from cluster.worker.board import Board
from cluster.worker.memory import oom_kills
from cluster.worker.pipe import salvage

__all__ = ["Life", "cause_of", "kept_outcomes"]

_decode_outcomes = msgspec.json.Decoder(list[Outcome]).decode


class Life:
    """One child, from before its fork until it is dead and its board was read."""

    def __init__(self, scratch: Path) -> None:
        name = uuid.uuid4().hex[:12]
        self.data, self._theirs = socket.socketpair()
        self.output_path = scratch / f"output-{name}"
        board_path = scratch / f"board-{name}"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._board_fd = os.open(board_path, flags, 0o600)
        os.unlink(board_path)
        self._output_fd = os.open(self.output_path, flags | os.O_APPEND, 0o600)
        self.board = Board(self._board_fd, create=True)
        self.transport: asyncio.WriteTransport | None = None
        self.status: int | None = None
        self.at_end = False
        self.closed = asyncio.Event()
        #: Whether it ever took work.
        self.was_ready = False
        self.born_s = time.monotonic()
        self.killed = False
        #: Since when its end is due: its kill was ordered, or only its keeper's word is missing.
        self.ends_s = 0.0
        #: Why it was killed, if there is a reason beyond the attempt's own.
        self.cause = ""
        self.told = ""
        self.peak_bytes = 0
        #: What was handed out to any attempt in it: a module may have kept it for the next.
        self.secrets: list[str] = []
        self.weighed_s = 0.0
        self.oom_kills = oom_kills()
        self.data.setblocking(False)

    def fds(self) -> list[int]:
        """Return what the child gets."""
        return [self._theirs.fileno(), self._board_fd, self._output_fd]

    def release_fds(self) -> None:
        """Close this process's copies of what the child got."""
        self._theirs.close()
        os.close(self._board_fd)
        os.close(self._output_fd)

    def kept(self) -> list[Outcome]:
        """Return the outcomes on the board. One of a write cut short counts as not ended."""
        kept = self.board.kept()
        return salvage(kept)[0] if kept else []

    def close(self) -> None:
        """Let go of everything but the capture file."""
        if self.transport is not None:
            self.transport.abort()
            self.transport = None
        else:
            self.data.close()
        self.board.close()
        self.closed.set()


def kept_outcomes(board: Board) -> list[Outcome]:
    """Return the outcomes on the board of a living child."""
    try:
        return _decode_outcomes(b"[%b]" % board.kept())
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return []  # Caught in the middle of a write; it will be sent.


def cause_of(status: int) -> str:
    """Return `signal 11` or `exit 3` for a wait status."""
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}" if code < 0 else f"exit {code}"
