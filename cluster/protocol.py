"""What gateway, manager, worker and child say to each other, as JSON bytes.

Rule 1: everything here is a message, not state; fields may be added, never repurposed.
Rule 2: a sender that repeats itself changes nothing: submissions carry (gateway, number), reports
carry (worker, number), outcomes carry the lease token. Rule 3: bytes of user JSON (`Raw`) pass
through unparsed.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from jobs.errors import (
    Conflict,
    Corrupt,
    DraymanError,
    InvalidInput,
    KeyReused,
    LeaseLost,
    NotFound,
    Overloaded,
    Unavailable,
)

__all__ = [
    "EPHEMERAL",
    "LEASE_LOST",
    "NODE_LOST",
    "NOTHING",
    "START_AHEAD_S",
    "WORKER_DIED",
    "Accepted",
    "Assignment",
    "Batch",
    "BatchReply",
    "FileInfo",
    "Fold",
    "InputInfo",
    "Inputs",
    "LostOutput",
    "OrderlyStop",
    "Orders",
    "Outcome",
    "OutcomeKind",
    "Output",
    "Progress",
    "Record",
    "Recorded",
    "Refused",
    "Report",
    "Submission",
    "decode_batch",
    "decode_batch_reply",
    "decode_orders",
    "decode_record",
    "decode_record_reply",
    "decode_report",
    "encode",
    "refusal_of",
]

NOTHING = msgspec.Raw(b"null")
#: Cause of an end that comes with the node's, and charges nobody.
NODE_LOST = "node lost"
WORKER_DIED, LEASE_LOST = "worker died", "lease lost"
#: How long before its moment an attempt under a rate limit is given out, at most.
START_AHEAD_S = 0.25
#: Begins the path of a file that is in the memory of a node (`cluster/worker/ephemeral.py`).
EPHEMERAL = "ray:"


# --- gateway -> manager -----------------------------------------------------------------------


class Submission(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One job to accept: its gateway-minted id and its encoded JobSpec."""

    job_id: str
    spec: msgspec.Raw


class Batch(msgspec.Struct, frozen=True):
    """What one gateway hands over in one call; committed whole, in one segment."""

    #: Random name of this gateway's life; numbers start at 1 within it.
    gateway: str
    number: int
    submissions: list[Submission]


class Fold(msgspec.Struct, frozen=True, array_like=True):
    """An object that its gateway asks the manager to take over."""

    name: str
    identity: str


class Accepted(msgspec.Struct, frozen=True, tag="ok", tag_field="t", omit_defaults=True, gc=False):
    """The job is durable. `job_id` is the first job's id when the request was a replay."""

    job_id: str
    replayed: bool = False
    #: Where it waits, if it was sent on from where it asked to.
    queue: str = ""


class Refused(msgspec.Struct, frozen=True, tag="no", tag_field="t", omit_defaults=True):
    """A DraymanError as data; `raise_()` gives it back."""

    error: str
    args: list[Any]

    def exception(self) -> DraymanError:
        """Return the error this stands for."""
        error = _ERRORS[self.error](*self.args)
        assert isinstance(error, DraymanError)
        return error


class BatchReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of a batch. Sent only after all of it is durable."""

    #: Results by position, but for what was accepted under its own id, which is nearly everything.
    others: dict[int, Accepted | Refused] = {}

    def results(self, submissions: Sequence[Submission]) -> list[Accepted | Refused]:
        """Return one result a submission, in order."""
        if not self.others:
            return [Accepted(submission.job_id) for submission in submissions]
        return [
            self.others.get(i) or Accepted(submission.job_id)
            for i, submission in enumerate(submissions)
        ]


_ERRORS: dict[str, Any] = {
    cls.__name__: cls
    for cls in (
        Conflict,
        Corrupt,
        InvalidInput,
        KeyReused,
        LeaseLost,
        NotFound,
        Overloaded,
        Unavailable,
    )
}


def refusal_of(error: DraymanError) -> Refused:
    """Return `error` as data that crosses process borders."""
    return Refused(type(error).__name__, list(error.args))


# --- manager <-> worker -----------------------------------------------------------------------


class FileInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """One output file of an attempt; `path` is its place in the store, or with a holder."""

    name: str
    path: str
    bytes: int
    sha256: str
    media_type: str = "application/octet-stream"

    @property
    def is_ephemeral(self) -> bool:
        """Whether it is held for tasks alone, and not in the store."""
        return self.path.startswith(EPHEMERAL)


class InputInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """One input that an attempt read."""

    uri: str
    sha256: str
    bytes: int = 0
    #: Of an output of another task: the attempt that made it.
    attempt: int = 0


class Output(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a successful attempt produced."""

    #: The handler's result as JSON, if small enough to travel inline.
    result: msgspec.Raw = NOTHING
    #: Where a large result lies in the store, and its checksum.
    result_ref: str | None = None
    files: list[FileInfo] = []
    result_sha256: str = ""
    #: Of a split: how many chunks there are, and the file that lists them.
    chunks: int | None = None
    manifest: FileInfo | None = None
    #: Checksum of what the manifest says, whatever wrote the file.
    chunks_sha256: str = ""
    #: What it read, as far as it fetched it through its context.
    inputs: list[InputInfo] = []
    #: Fingerprint of its params, where they are not those of the job.
    params: str = ""


class Inputs(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a task of a planned job gets beside the spec."""

    role: Literal["whole", "split", "chunk", "join"]
    #: Number of the chunk.
    index: int = -1
    #: Outputs of the steps that its params refer to, by step, each with the id of its task. None:
    #: it was lost since, and is being made again.
    outputs: dict[str, tuple[str, Output | None]] = {}
    #: Of a chunk and a join: the file that lists the chunks (None: as above), and the attempt that
    #: wrote it.
    manifest: FileInfo | None = None
    split: tuple[str, int] = ("", 0)
    #: Of a join: chunks there are, and those that failed within what is tolerated.
    count: int = 0
    failed: list[tuple[int, str]] = []


OutcomeKind = Literal[
    "ok", "failed", "discarded", "snoozed", "stopped", "returned", "crashed", "lost"
]


class LostOutput(msgspec.Struct, frozen=True, array_like=True):
    """A task whose output an attempt found gone, or other than it was."""

    task_id: str
    #: The attempt that made it.
    attempt: int


class Outcome(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How one leased attempt ended.

    ok         finished; `output` is an encoded Output
    failed     raised, asked for a retry, or ran out of time; `error`, `cause`, maybe `delay_s`
    discarded  raised Discard; `error`
    snoozed    raised Snooze; `delay_s`
    stopped    obeyed or was killed by a stop that was ordered, or was killed beside another whose
               process had to go; `cause` says which
    returned   never started; give it to someone else
    lost       outputs of tasks that it needs are gone; `output` lists them, see LostOutput
    crashed    its process died; `cause` (`signal 11`, `oom`, `exit 3`), `error` (last log lines),
               `alone`: nothing else ran in that process
    """

    token: int
    kind: OutcomeKind
    started_at: float = 0.0
    ended_at: float = 0.0
    output: msgspec.Raw = NOTHING
    error: str = ""
    cause: str = ""
    delay_s: float | None = None
    alone: bool = True
    #: Where the attempt's log lies in the store; empty if it printed nothing.
    log: str = ""
    #: Jobs that are submitted if it counts: with `ok` alone.
    submits: list[Submission] = []


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """How far a running attempt is. Never journalled."""

    token: int
    fraction: float | None
    message: str = ""


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """A worker's whole situation. Level-triggered: each report stands by itself.

    A report without `outcomes` may be held by the manager until there are orders or the poll time
    is over; one with outcomes is answered as soon as they are durable.
    """

    worker: str
    #: Counts up by one a report within the worker's life; a lower one than seen is refused.
    number: int
    #: Number of the last Orders applied, from the manager of `epoch`.
    applied: int
    epoch: int
    pool: str
    queues: list[str]
    #: How many more tasks could start right now.
    free: int
    #: How many more tasks are welcome beyond `free`, to be started later.
    prefetch: int = 0
    #: Every token held whose outcome is not yet confirmed durable, in start order.
    held: list[int] = []
    #: Those of `held` that have started.
    started: list[int] = []
    outcomes: list[Outcome] = []
    progress: list[Progress] = []
    node: str = ""
    pid: int = 0
    draining: bool = False
    #: Fingerprint of the code of each job type it can run; told while it has nothing to report.
    code: dict[str, str] = {}


class Assignment(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The right to run one attempt: a lease with its token."""

    token: int
    job_id: str
    task_id: str
    attempt: int
    spec: msgspec.Raw
    #: What the last accepted checkpoint held, as JSON.
    checkpoint: msgspec.Raw = NOTHING
    #: Run it in a process with nothing else in it: it is suspected of killing one.
    alone: bool = False
    #: The worker that ran it before and was killed: nothing of that one may live any more.
    after: str = ""
    #: The code it runs with (`cluster/code.py`); empty: what the cluster was started with.
    code: str = ""
    #: What it needs beside the spec: encoded Inputs; `null` for a job's only task.
    inputs: msgspec.Raw = NOTHING
    #: Epoch seconds at which its handler begins, within `START_AHEAD_S`; 0: at once. So calls
    #: under a rate limit are as far apart as they should be, however long the way here was.
    starts_at: float = 0.0


class OrderlyStop(msgspec.Struct, frozen=True, array_like=True):
    """Ask the attempt to stop (repeated until it is gone); kill it after its grace."""

    token: int
    #: `cancel`, `drain`, `promote` (it goes on in another queue) or `job failed`.
    reason: str


class Orders(msgspec.Struct, frozen=True, omit_defaults=True):
    """The manager's answer to a report. Everything in it is durable."""

    #: The manager's claim on the journal; a worker refuses a lower one than it has seen.
    epoch: int
    #: 0 for an answer that gives nothing away: to a report that was overtaken, or to a worker that
    #: was given up.
    number: int
    assignments: list[Assignment] = []
    stops: list[OrderlyStop] = []
    #: Unstarted tokens to give back; answer each with a `returned` outcome, or by starting it.
    recall: list[int] = []
    #: Tokens that are nobody's any more: kill the attempt, drop its output, say nothing more.
    drop: list[int] = []
    #: Finish or hand back everything, then exit.
    drain: bool = False
    #: What still runs by then is stopped, so that within so long all is handed back; 0: never.
    drain_s: float = 0.0


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something a running attempt wants durable now; refused with LeaseLost if superseded.

    checkpoint  `value` is where the next attempt resumes
    once_claim  the effect `key` is about to happen
    once_done   the effect `key` happened, with `value`
    """

    token: int
    op: Literal["checkpoint", "once_claim", "once_done"]
    key: str = ""
    value: msgspec.Raw = NOTHING
    #: Counts up by one a record within the worker's life; said again, it keeps its number.
    number: int = 0


class Recorded(msgspec.Struct, frozen=True, tag="ok", tag_field="t", omit_defaults=True):
    """The record is durable. For `once_claim`: what was found, and the recorded value."""

    found: Literal["new", "done", "in_doubt"] = "new"
    value: msgspec.Raw = NOTHING


encode = msgspec.json.Encoder().encode
decode_record = msgspec.json.Decoder(Record).decode
decode_record_reply: Any = msgspec.json.Decoder(Recorded | Refused).decode
decode_batch = msgspec.json.Decoder(Batch).decode
decode_batch_reply = msgspec.json.Decoder(BatchReply).decode
decode_report = msgspec.json.Decoder(Report).decode
decode_orders = msgspec.json.Decoder(Orders).decode
