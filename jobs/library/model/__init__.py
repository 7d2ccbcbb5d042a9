"""What `model.infer` is made of, in the order of the work.

- `source`: brings the model's bytes, from an installed package or a URI
- `guard`: refuses a model that would read other files
- `session`: the one model that a process keeps, and what it takes and gives
- `tensors`: columns into tensors that the model takes, and its tensors into columns
- `rows`: the input as batches: Parquet, NDJSON or .npz
- `predictions`: the file of what came out

Rule 1: neither onnxruntime nor numpy is imported before it is needed. Rule 2: what no retry can
mend is a `Discard` that names the param, the column and the row. Rule 3: memory holds a batch in, a
batch out and a group of rows to write, whatever the size of the input.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from jobs.outcome import Discard

__all__ = ["needs_infer"]


@contextmanager
def needs_infer() -> Iterator[None]:
    """Turn the lack of a library into a refusal that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise Discard(
            f'{error.name!r} is not installed on this worker: pip install "drayman[infer]", or '
            "onnxruntime-gpu where it has a GPU"
        ) from error
