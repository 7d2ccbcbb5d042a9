"""What a running handler asks its worker for, and the answer.

Rule 1: what only the manager can answer is asked until it does: while it is away, the attempt
waits. Rule 2: a secret is noted as told before it is told, so that the log can be redacted whatever
becomes of the child. Rule 3: an attempt that is not held here any more is told so, whatever it
asks.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import structlog

from cluster.protocol import (
    Assignment,
    Record,
    Recorded,
    Refused,
    decode_record_reply,
    encode,
    refusal_of,
)
from cluster.store.contract import Objects
from cluster.worker.ephemeral import Holder
from cluster.worker.held import Held
from cluster.worker.pipe import Answer, Call
from cluster.worker.secrets import read_secret
from jobs.errors import DraymanError, LeaseLost, NotFound

__all__ = ["Calls"]

log = structlog.get_logger("drayman.worker")

RETRY_MIN_S, RETRY_MAX_S = 0.05, 1.0


class Calls:
    """Answers the calls of one worker's attempts."""

    def __init__(
        self,
        record: Callable[[bytes], Awaitable[bytes]],
        ask: Callable[[bytes], Awaitable[bytes]],
        open_store: Callable[[], Objects],
        holder: Holder | None,
    ) -> None:
        self._record, self._ask = record, ask
        self._open_store, self._holder = open_store, holder
        #: Records sent so far.
        self._records = 0

    async def answer(self, held: Held | None, call: Call) -> Answer:
        """Return the answer or the refusal; `held` is None if the attempt is nobody's any more."""
        try:
            if held is None:
                raise LeaseLost(call.token)
            return await self._found(held, call)
        except DraymanError as error:
            return Answer(call.call, refused=refusal_of(error))

    async def _found(self, held: Held, call: Call) -> Answer:
        if call.op == "secret":
            value = await asyncio.to_thread(read_secret, call.key)
            if value not in held.secrets:
                held.secrets.append(value)
            return Answer(call.call, msgspec.Raw(encode(value)))
        if call.op == "endpoint" or call.op == "disable_endpoint":
            return await asyncio.to_thread(self._endpoint, held, call)
        if call.op == "tasks":
            return await self._tasks_of(held, call)
        if call.op == "hold" or call.op == "bring" or call.op == "missing":
            return Answer(call.call, await self._ephemeral(held.assignment, call))
        self._records += 1
        message = encode(Record(call.token, call.op, call.key, call.value, self._records))
        reply = decode_record_reply(await self._insist(self._record, message))
        if isinstance(reply, Recorded):
            return Answer(call.call, reply.value, reply.found)
        return Answer(call.call, refused=reply)

    @cached_property
    def _endpoints(self) -> Any:
        from cluster.endpoints import Endpoints

        return Endpoints(self._open_store())

    def _endpoint(self, held: Held, call: Call) -> Answer:
        """Look up a webhook endpoint of the attempt's tenant, or disable it. Blocks."""
        endpoints, tenant = self._endpoints, held.spec().tenant
        if call.op == "disable_endpoint":
            reason = msgspec.json.decode(call.value, type=str)
            endpoints.disable(tenant, call.key, reason, time.time())
            return Answer(call.call)
        found = endpoints.delivery(tenant, call.key, time.time())
        held.secrets += [one for one in found.secrets if one not in held.secrets]
        return Answer(call.call, msgspec.Raw(encode(found)))

    async def _tasks_of(self, held: Held, call: Call) -> Answer:
        """Ask for tasks of a job that the attempt's tenant may see."""
        query = msgspec.json.decode(call.value)
        query |= {"op": "tasks", "job_id": call.key, "tenant": held.spec().tenant}
        reply = await self._insist(self._ask, encode(query))
        kind, body = reply[:1], reply[1:]
        if kind == b"~":  # it is not in the manager's memory: the attempt looks at history
            return Answer(call.call, found="evicted")
        if kind == b"-":
            return Answer(call.call, refused=msgspec.json.decode(body, type=Refused))
        return Answer(call.call, msgspec.Raw(body))

    async def _ephemeral(self, of: Assignment, call: Call) -> msgspec.Raw:
        """See to a file that is held instead of stored; without a holder, none is."""
        holder, value = self._holder, msgspec.json.decode(call.value)
        answer: str | list[str] | None = None
        if call.op == "hold" and holder is not None:
            key = f"{of.job_id}/{of.task_id}/{of.attempt}/{call.key}"
            answer = await holder.hold(key, Path(value))
        elif call.op == "missing":
            answer = value if holder is None else await holder.missing(value)
        elif call.op == "bring":
            if holder is None:
                raise NotFound("file", call.key)
            await holder.bring(call.key, Path(value))
        return msgspec.Raw(encode(answer))

    async def _insist(self, call: Callable[[bytes], Awaitable[bytes]], message: bytes) -> bytes:
        """Repeat until the manager answers: while it is away, the attempt waits."""
        pause_s = RETRY_MIN_S
        while True:
            try:
                return await call(message)
            except Exception as error:
                # Whatever the carrier raises, it means: not known to be durable. Records repeat
                # harmlessly, and a child that died meanwhile takes this task with its slot.
                log.warning("worker.call_failed", error=str(error), next_try_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(RETRY_MAX_S, pause_s * 2)
