"""Work whose every start and every effect is written down, so that both can be counted."""

import os
import time

from pydantic import BaseModel

from jobs import Context, job


class Book(BaseModel):
    #: A folder that all attempts write to.
    folder: str
    steps: int = 1
    step_s: float = 0.0


def note(folder: str, book: str, *words: object) -> None:
    """Append a line in one write, which no other process's line can cut."""
    fd = os.open(f"{folder}/{book}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(fd)


def is_doubled(folder: str, job_id: str) -> bool:
    """Whether an earlier attempt of the job has not ended and lives."""
    began, ended = set(), set()
    with open(f"{folder}/attempts") as lines:
        for word, job, attempt, pid in map(str.split, lines):
            if job == job_id:
                (began if word == "start" else ended).add((attempt, int(pid)))
    return any(pid != os.getpid() and is_running(pid) for _, pid in began - ended)


def is_running(pid: int) -> bool:
    """Whether the process can still do anything; a zombie cannot."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


@job("chaos.work", max_attempts=10)
def work(ctx: Context, params: Book) -> str:
    """Take effect once in each step, and begin after the last finished step if begun again."""
    folder, me = params.folder, (ctx.job_id, ctx.attempt, os.getpid())
    note(folder, "starts", *me, time.time())
    note(folder, "attempts", "start", *me)
    if is_doubled(folder, ctx.job_id):
        note(folder, "doubled", *me)
    try:
        done: int = ctx.resumed_from or 0
        for step in range(done, params.steps):
            time.sleep(params.step_s)

            def effect(key: str, step: int = step) -> bool:
                note(folder, "effects", "happened", ctx.job_id, step)
                return True

            # Who dies between an effect and its record leaves it in doubt: repeated, and counted.
            ctx.once(f"step-{step}", effect, in_doubt="repeat")
            note(folder, "effects", "recorded", ctx.job_id, step)
            ctx.checkpoint(step + 1)
    finally:
        note(folder, "attempts", "end", *me)
    return ctx.job_id
