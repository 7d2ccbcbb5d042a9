"""What an error of Arrow's says: that the file is at fault, or what it was read from."""

import pyarrow as pa

__all__ = ["is_damage"]


def is_damage(error: BaseException, *, in_bucket: bool = False) -> bool:
    """Whether the file is at fault, so that no retry can help.

    Arrow then raises ArrowInvalid, or an OSError of its own, which has no number. Of a bucket that
    it reads itself the latter may also mean that the bucket does not answer: then it is no.
    """
    if isinstance(error, pa.ArrowInvalid):
        return True
    return type(error) is OSError and error.errno is None and not in_bucket
