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


@job("chaos.work", max_attempts=10)
def work(ctx: Context, params: Book) -> str:
    """Take effect once in each step, and begin after the last finished step if begun again."""
    note(params.folder, "starts", ctx.job_id, ctx.attempt, os.getpid(), time.time())
    done: int = ctx.resumed_from or 0
    for step in range(done, params.steps):
        time.sleep(params.step_s)

        def effect(key: str, step: int = step) -> bool:
            note(params.folder, "effects", ctx.job_id, step)
            return True

        # Whoever died between an effect and its record leaves it in doubt: repeated, and counted.
        ctx.once(f"step-{step}", effect, in_doubt="repeat")
        ctx.checkpoint(step + 1)
    return ctx.job_id
