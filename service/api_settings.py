"""How much the API takes, and which run it belongs to.

Every limit is checked before what it limits is held in memory or parsed.
"""

from dataclasses import dataclass

__all__ = ["ApiSettings"]

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Settings of one API process; the defaults suit a small cluster."""

    #: Random name of this run; `/readyz` answers with it, so that whoever started the API can
    #: tell it from an orphan of an earlier run on the same port.
    run: str = ""
    #: Params up to this size travel inside the job; larger ones go to the store first.
    params_inline_bytes_max: int = 64 * KIB
    #: Above this the answer is 413: upload the data and name it in params.
    params_bytes_max: int = 1 * MIB
    batch_lines_max: int = 10_000
    batch_bytes_max: int = 32 * MIB
    #: Bodies of submissions that are being read or are on their way to the manager, all together;
    #: what is made of them takes some times as much.
    bodies_bytes_max: int = 128 * MIB
    upload_bytes_max: int = 5 * GIB
    #: How long an idempotency key is remembered.
    key_window_s: float = 24 * 3600.0
    #: Cap of `Prefer: wait=N`; proxies commonly cut silent connections after 60 s.
    wait_s_max: float = 30.0
