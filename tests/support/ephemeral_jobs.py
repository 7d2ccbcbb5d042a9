"""Job types that keep ephemeral outputs."""

import hashlib
import time
from collections.abc import Iterator

from pydantic import BaseModel

from jobs import Context, Results, RetryPolicy, fan_out, job
from tests.support.live_jobs import AT_ONCE, Folder, mark, wait_for


class Kept(BaseModel):
    name: str = "piece.bin"
    text: str = ""
    #: Raise in the middle of it.
    fails: bool = False


class Wanted(BaseModel):
    #: Job, or empty for its own, and the tasks whose `piece.bin` it reads.
    job_id: str = ""
    tasks: list[str]
    opened: bool = False


class Pieces(Folder):
    count: int
    bytes: int
    #: Every so many of the chunks keeps its piece ephemerally: 1 for all, 0 for none.
    every: int = 1
    lasts_s: float = 0.0
    join_held: bool = False


@job("ephemeral.keep")
def keep(ctx: Context, params: Kept) -> str:
    with ctx.files.open_output(params.name, ephemeral=True) as output:
        output.write(params.text.encode())
        if params.fails:
            raise ValueError("before the rest")
    return ctx.files.uri(params.name)


@job("ephemeral.keep_async")
async def keep_async(ctx: Context, params: Kept) -> str:
    return ctx.files.write(params.name, params.text.encode(), ephemeral=True)


@job("ephemeral.read", retry=RetryPolicy(base_s=0))
def read(ctx: Context, params: Wanted) -> list[str]:
    found = []
    for task in params.tasks:
        uri = f"output:{params.job_id or ctx.job_id}/{task}/piece.bin"
        if params.opened:
            with ctx.files.open(uri) as file:
                found.append(file.read().decode())
        else:
            found.append(ctx.files.fetch(uri).read_text())
    return found


def piece_of(index: int, length: int) -> bytes:
    """Return bytes that no compression makes less, the same for the same chunk."""
    return hashlib.shake_128(str(index).encode()).digest(length)


def to_pieces(ctx: Context, params: Pieces) -> Iterator[int]:
    yield from range(params.count)


def join_pieces(ctx: Context, params: Pieces, results: Results[int]) -> str:
    """Return the checksum of all pieces in order."""
    if params.join_held:
        wait_for(ctx, params, "open-join")
    digest = hashlib.sha256()
    for result in results:
        path = ctx.files.fetch(result.files["piece.bin"])
        digest.update(path.read_bytes())
        path.unlink()
    return digest.hexdigest()


@fan_out("ephemeral.pieces", split=to_pieces, join=join_pieces, retry=AT_ONCE)
def make_piece(ctx: Context, params: Pieces, chunk: int) -> int:
    mark(ctx, params)
    time.sleep(params.lasts_s)
    ephemeral = params.every > 0 and chunk % params.every == 0
    ctx.files.write("piece.bin", piece_of(chunk, params.bytes), ephemeral=ephemeral)
    return chunk
