"""A batch of submissions is decided: accepted, refused, or answered as the first time.

Rule 1: a batch that is sent again gets the answer it got before, as far back as a gateway can ask.
Rule 2: what is refused stands in the journal beside what was accepted, so that a manager that comes
after this one says the same.
"""

import msgspec

from cluster.commit import CommitLog
from cluster.pressure import Pressure
from cluster.protocol import Accepted, Batch, Refused, encode, refusal_of
from cluster.queue import commands as c
from cluster.queue.events import BatchAccepted
from cluster.queue.spec import decode_head, decode_spec
from jobs.errors import Conflict, DraymanError, InvalidInput, Overloaded

__all__ = ["Acceptor"]


class Acceptor:
    """Decides batches."""

    def __init__(self, commit: CommitLog, pressure: Pressure) -> None:
        self._commit, self._pressure = commit, pressure

    def accept(self, batch: Batch) -> dict[int, Accepted | Refused]:
        """Decide a batch; return what was not simply accepted, by its place."""
        marks = self._commit.state.gateways.get(batch.gateway)
        if marks is not None and (before := marks.window.get(batch.number)) is not None:
            return self._answer_again(batch, before or b"{}")
        if marks is not None and marks.too_old(batch.number):
            raise Conflict(f"batch {batch.number} of gateway {batch.gateway} is too old to repeat")
        now = self._commit.now()
        run, jobs = self._commit.run, self._commit.state.jobs
        others: dict[int, Accepted | Refused] = {}
        refused: dict[int, Refused] = {}
        for i, submission in enumerate(batch.submissions):
            job_id, raw = submission.job_id, bytes(submission.spec)
            try:
                decode_spec(raw)  # what cannot be read as a whole would only be found when it runs
                spec = decode_head(raw)
                if not run(c.Submit(job_id, spec, raw), now) and spec.key is not None:
                    others[i] = self._replayed(job_id, spec.key)
                elif (job := jobs.get(job_id)) is not None and job.queue != spec.queue:
                    others[i] = Accepted(job_id, queue=job.queue)
            except msgspec.MsgspecError as error:
                refused[i] = refusal_of(InvalidInput("job", f"can't be read: {error}"))
            except Overloaded as error:
                refused[i] = refusal_of(self._pressure.timed(error))
            except DraymanError as error:
                refused[i] = refusal_of(error)
        self._commit.record(
            BatchAccepted(batch.gateway, batch.number, msgspec.Raw(encode(refused)))
        )
        return others | refused

    def _replayed(self, job_id: str, key: str | None) -> Accepted:
        found = self._commit.state.keys.find(key, self._commit.now()) if key is not None else None
        first = found[0] if found is not None else job_id
        return Accepted(first, replayed=first != job_id)

    def _answer_again(self, batch: Batch, refused: bytes) -> dict[int, Accepted | Refused]:
        """Answer a repeated batch as the first time: ids were minted once."""
        others: dict[int, Accepted | Refused] = {}
        others |= msgspec.json.decode(refused, type=dict[int, Refused])
        for i, submission in enumerate(batch.submissions):
            if i in others:
                continue
            accepted = self._replayed(submission.job_id, decode_head(submission.spec).key)
            if accepted.replayed:
                others[i] = accepted
        return others
