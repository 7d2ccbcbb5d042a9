"""Importing this does ahead what the first call of a process would: a third of a second of work.

httpx imports much only when it is first used, and the certificates are read then. Calls that a
limit spaced evenly wait for that, and then come all at once.
"""

from contextlib import suppress
from importlib import import_module

from jobs.library.http import exchange  # for its own imports
from jobs.library.http.addresses import Allowed
from jobs.library.http.transport import GuardedTransport

__all__ = ["exchange"]

GuardedTransport(Allowed())
with suppress(ImportError):  # where another version keeps it elsewhere, that one call is late
    import_module("anyio._backends._asyncio")
