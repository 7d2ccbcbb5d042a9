"""The file of what came out: Parquet, a row for each row of the input, in its order."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.library.model.session import Tensor
from jobs.library.model.tensors import as_column
from jobs.outcome import Discard

__all__ = ["Predictions", "predictions_to"]

#: Rows are written in groups of at least so many, or so much: small ones read slowly.
_GROUP_ROWS, _GROUP_BYTES = 1 << 16, 16 << 20


class Predictions:
    """Columns that were kept, then those of the model's outputs."""

    def __init__(self, output: BinaryIO, keep: Sequence[str], outputs: Sequence[Tensor]) -> None:
        self._output, self._keep, self._outputs = output, keep, outputs
        #: What the columns are, known from the first batch on.
        self.schema: Any = None
        self._writer: Any = None
        self._waiting: list[Any] = []
        #: Of what waits: counted, as adding it up anew for each batch takes longer with each.
        self._rows = self._bytes = 0

    def add(self, kept: Sequence[Any], values: Sequence[Any]) -> None:
        """Take what a batch gave. Raises Discard where it differs from what came before."""
        columns = [*kept]
        for output, value in zip(self._outputs, values, strict=True):
            columns.append(as_column(value, f"outputs: {output.name!r}"))
        names = [*self._keep, *(output.name for output in self._outputs)]
        if self.schema is None:
            self.schema = pa.schema(
                [(name, column.type) for name, column in zip(names, columns, strict=True)]
            )
            self._writer = pq.ParquetWriter(self._output, self.schema)
        columns = [
            _as(column, field, "keep" if field.name in self._keep else "outputs")
            for column, field in zip(columns, self.schema, strict=True)
        ]
        batch = pa.record_batch(columns, schema=self.schema)
        self._waiting.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._write()

    def finish(self) -> None:
        """Write what waits."""
        if self._waiting:
            self._write()

    def close(self) -> None:
        """Write the end of the file, if it has a beginning."""
        if self._writer is not None:
            self._writer.close()

    def _write(self) -> None:
        table = pa.Table.from_batches(self._waiting).combine_chunks()
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._waiting = []
        self._rows = self._bytes = 0


@contextlib.contextmanager
def predictions_to(
    output: BinaryIO, keep: Sequence[str], outputs: Sequence[Tensor]
) -> Iterator[Predictions]:
    """Write predictions to `output`; what an error cut short is left so."""
    predictions = Predictions(output, keep, outputs)
    try:
        yield predictions
        predictions.finish()
    finally:
        predictions.close()


def _as(column: Any, field: Any, param: str) -> Any:
    if column.type == field.type:
        return column
    try:
        # NDJSON has no types, so that whole numbers or nulls may stand among others.
        if param == "keep":
            return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    fix = "write the input as Parquet" if param == "keep" else "a column needs rows of one shape"
    raise Discard(
        f"{param}: {field.name!r} is {field.type} in the first rows and {column.type} in later "
        f"ones; {fix}"
    )
