"""Columns into the tensors that a model takes, and tensors into columns.

Rule 1: a row is a value, a list of the row's values, or lists in lists of the row's very shape.
Rule 2: what is no exact fit is refused, naming column and row: no rounding to whole numbers, no
overflow, no null. Only the precision of a float may shrink. Rule 3: a column of tensors is
fixed-size lists in each other, which says its own shape.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.library.model.session import Tensor
from jobs.outcome import Discard

__all__ = ["Where", "as_column", "fitted", "of_column", "shape_for"]

#: Names the row of this number within the batch: `row 17`, `line 17`.
Where = Callable[[int], str]
#: NumPy kinds that may become each kind.
_FROM = {"O": "OU", "b": "b", "i": "iu", "u": "iu", "f": "iuf"}


def of_column(column: Any, tensor: Tensor, where: Where, allow_nan: bool) -> Any:
    """Return an Arrow column as the input `tensor` of the model. Raises Discard."""
    column = _plain(column)
    kind, depth = column.type, 0
    while _is_list(kind):
        kind, depth = kind.value_type, depth + 1
    wanted = shape_for(tensor, depth, str(column.type))
    if not (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
    ):
        raise _wrong(tensor, str(column.type))
    rows, per_row = len(column), 1
    for axis in wanted:
        _no_null(column, tensor, where, per_row)
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        bad = np.flatnonzero(lengths != axis)
        if bad.size:
            raise Discard(
                f"input: column {tensor.name!r}, {where(int(bad[0]) // per_row)}: "
                f"{lengths[bad[0]]} values where the model takes {axis}"
            )
        column = column.flatten()
        per_row *= axis
    _no_null(column, tensor, where, per_row)
    values = column.to_numpy(zero_copy_only=False).reshape(rows, *tensor.row_shape)
    return fitted(values, tensor, where, allow_nan)


def shape_for(tensor: Tensor, depth: int, told: str) -> tuple[int, ...]:
    """Return the lengths of the lists that hold a row, `depth` of them in each other."""
    shape = tuple(axis or 0 for axis in tensor.row_shape)
    if depth == len(shape):
        return shape
    if depth == 1:
        return (tensor.row_size,)
    if depth == 0 and tensor.row_size == 1:
        return ()
    raise Discard(
        f"input: column {tensor.name!r} is {told}; the model takes {tensor.kind} of the shape "
        f"{shape} a row: write lists in lists of that shape, or one list of {tensor.row_size}"
    )


def fitted(values: Any, tensor: Tensor, where: Where, allow_nan: bool) -> Any:
    """Return the array as the type that the model takes. Raises Discard where it does not fit."""
    wanted = np.dtype(tensor.dtype)
    if values.dtype.kind not in _FROM[wanted.kind]:
        raise _wrong(tensor, str(values.dtype))
    if wanted.kind in "iu" and not np.can_cast(values.dtype, wanted):
        range_ = np.iinfo(wanted)
        _refuse(
            (values < range_.min) | (values > range_.max),
            tensor,
            where,
            f"outside {range_.min} to {range_.max}, which is what {tensor.kind} holds",
        )
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(values, dtype=wanted)
    if wanted.kind == "f":
        _refuse(np.isinf(cast) & ~np.isinf(values), tensor, where, f"too large for {tensor.kind}")
        if not allow_nan:
            _refuse(np.isnan(cast), tensor, where, "NaN; replace it, or set allow_nan")
    return cast


def as_column(array: Any, named: str) -> Any:
    """Return rows of tensors as an Arrow column. Raises Discard where no column can hold them."""
    if 0 in array.shape[1:]:
        raise Discard(f"{named} has the shape {array.shape}: nothing in a row; leave it out")
    flat = array.reshape(-1)
    try:
        column = pa.array(flat.tolist(), pa.string()) if array.dtype == object else pa.array(flat)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise Discard(
            f"{named} is {array.dtype}, which no column can hold; leave it out"
        ) from error
    for axis in reversed(array.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, axis)
    return column


def _plain(column: Any) -> Any:
    """Return the column without what only says how it is stored."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _is_list(kind: Any) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _no_null(column: Any, tensor: Tensor, where: Where, per_row: int) -> None:
    if column.null_count:
        first = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise Discard(
            f"input: column {tensor.name!r}, {where(first // per_row)}: null; give a value"
        )


def _refuse(bad: Any, tensor: Tensor, where: Where, reason: str) -> None:
    if bad.any():
        row = int(np.argmax(bad.reshape(len(bad), -1).any(axis=1)))
        raise Discard(f"input: column {tensor.name!r}, {where(row)}: {reason}")


def _wrong(tensor: Tensor, told: str) -> Discard:
    return Discard(
        f"input: column {tensor.name!r} is {told}, the model takes {tensor.kind}; convert it"
    )
