"""A stream of server-sent events, followed over every break.

Rule: each event once, in order. The last number seen is sent along when the stream is begun again,
and what comes with no higher one is left out. Where the server cannot go on from there it says
`reset`, which is handed over like any other event.
"""

import codecs
import json
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from service.client.core import (
    Core,
    Item,
    Items,
    Open,
    Read,
    Tries,
    Unreachable,
    is_later,
    refusal,
    retry_after_s,
)
from service.client.types import Event

__all__ = ["FINISHED", "LAST", "Parser", "follow"]

FINISHED = frozenset({"completed", "failed", "cancelled"})
#: After these a job's stream is over.
LAST = frozenset({"job.completed", "job.failed", "job.cancelled"})
#: How a stream begins, or begins anew: with what is, not with what happened.
BEGINS = frozenset({"job", "reset"})
#: Characters of a line: one that never ends would fill the memory.
LINE_MAX = 8 << 20


class Parser:
    """Makes events of the bytes of a stream, however they are cut."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._line = ""
        self._data: list[str] = []

    def feed(self, block: bytes) -> Iterator[Event]:
        """Yield the events that these bytes complete."""
        self._line += self._decode(block)
        # Not splitlines: a text may have other breaks in it than those of the format.
        *lines, self._line = self._line.replace("\r\n", "\n").split("\n")
        if len(self._line) > LINE_MAX:
            raise Unreachable(f"a line of the stream has more than {LINE_MAX:,} characters")
        for line in lines:
            if line:
                name, _, value = line.partition(":")
                if name == "data":
                    self._data.append(value.removeprefix(" "))
            elif self._data:
                data, self._data = "\n".join(self._data), []
                yield json.loads(data)


def follow(
    core: Core, path: str, query: Mapping[str, Any], after: int | None, *, of_a_job: bool
) -> Items[Event]:
    """Hand over the events of a stream until it is over. Raises ApiError or Unreachable."""
    tries = Tries(core.patience_s)
    for last in tries:
        asked_s: float | None = None
        # Compressed, events would be gathered on the way.
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
        if after is not None:
            headers["Last-Event-ID"] = str(after)
        try:
            answer: httpx.Response = yield Open(path, {"params": query, "headers": headers})
            if answer.status_code == 204:
                return
            if not answer.is_success:
                if last or not is_later(answer, True):
                    raise refusal(answer)
                asked_s = retry_after_s(answer)
            else:
                parser = Parser()
                while (block := (yield Read())) is not None:
                    tries.extend()  # it lives, though it may have nothing to tell
                    for event in parser.feed(block):
                        tries.renew()
                        kind, seq = event["type"], event.get("seq")
                        if seq is not None:
                            if after is not None and seq <= after and kind not in BEGINS:
                                continue
                            after = seq
                        yield Item(event)
                        if of_a_job and _is_last(event):
                            return
        except httpx.TransportError as error:
            if last:
                raise core.unreachable(error) from error
        yield tries.pause(asked_s)


def _is_last(event: Event) -> bool:
    return event["type"] in LAST or (event["type"] in BEGINS and event.get("status") in FINISHED)
