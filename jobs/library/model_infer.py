"""`model.infer`: rows through an ONNX model in batches, on a GPU where there is one.

Rule 1: a process keeps the model for the next job that names the same one; an attempt that is
stopped, or breaks, frees it. Rule 2: where it runs is the caller's to say: `gpu` never runs on the
CPU. Rule 3: this file imports no onnxruntime: the registry imports every job type in every process.
"""

import time
from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.context import Context
from jobs.definition import job
from jobs.library.model import needs_infer
from jobs.outcome import Discard

__all__ = ["PREDICTIONS", "InferParams", "infer"]

PREDICTIONS = "predictions.parquet"

Uri = Annotated[str, Field(min_length=1, max_length=2048)]
Name = Annotated[str, Field(min_length=1, max_length=500)]


class InferParams(BaseModel):
    """Which rows through which model."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[
        Uri,
        Field(
            description="An ONNX file: package:NAME/folder/file.onnx of an installed package, "
            "upload:, output:, s3:// ..., or a path in a folder that the operator opened"
        ),
    ]
    input: Annotated[
        Uri, Field(description="Parquet, NDJSON or .npz: a column for each input of the model")
    ]
    outputs: Annotated[
        list[Name] | None,
        Field(min_length=1, max_length=100, description="The model's outputs to keep; else all"),
    ] = None
    keep: Annotated[
        list[Name],
        Field(max_length=100, description="Columns to put beside the outputs, such as an id"),
    ] = []
    batch: Annotated[
        int, Field(ge=1, le=8192, description="Rows at once; fewer where they would be too large")
    ] = 64
    device: Annotated[
        Literal["auto", "cpu", "gpu"],
        Field(description="auto: the GPU where one works; gpu: fails where none does"),
    ] = "auto"
    allow_nan: Annotated[bool, Field(description="Else a NaN in the input is refused")] = False

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        counted = Counter([*(self.outputs or ()), *self.keep])
        twice = sorted(name for name, count in counted.items() if count > 1)
        if twice:
            raise ValueError(
                f"outputs and keep: {twice[0]!r} stands there twice, and columns need names of "
                "their own; leave one out"
            )
        return self


@job("model.infer")
def infer(ctx: Context, params: InferParams) -> dict[str, Any]:
    """Run rows through an ONNX model in batches, on a GPU where there is one."""
    with needs_infer():
        from jobs.library.model.predictions import predictions_to
        from jobs.library.model.rows import Wanted, open_rows
        from jobs.library.model.session import borrowed
        from jobs.library.model.source import model_bytes

    started = time.monotonic()
    ctx.progress(0.0, "Bringing the model")
    data, digest = model_bytes(ctx, params.model)
    with borrowed(data, digest, params.device) as (model, is_loaded):
        del data
        outputs = model.wanted(params.outputs)
        clash = [output.name for output in outputs if output.name in params.keep]
        if clash:
            raise Discard(f"keep: {clash[0]!r} is also an output of the model; leave it out of one")
        size = model.rows_at_once(params.batch, outputs)
        wanted = Wanted(model.inputs, params.keep, params.allow_nan)
        rows = batches = 0
        with (
            open_rows(ctx.files, params.input, wanted) as source,
            ctx.files.open_output(PREDICTIONS) as file,
            predictions_to(file, params.keep, outputs) as predictions,
        ):
            for batch, share in source.batches(size):
                predictions.add(batch.kept, model.run(batch.inputs, batch.rows, outputs))
                rows += batch.rows
                batches += 1
                ctx.progress(share, f"{rows:,} rows")
            if not rows:
                raise Discard("input: has no rows; give at least one")
        seconds = time.monotonic() - started
        return {
            "file": PREDICTIONS,
            "rows": rows,
            "batches": batches,
            "batch": size,
            "device": model.device,
            "model": {"sha256": digest, "loaded": is_loaded},
            "outputs": {
                output.name: str(predictions.schema.field(output.name).type) for output in outputs
            },
            "seconds": round(seconds, 3),
            "rows_per_s": round(rows / max(seconds, 1e-6), 1),
        }
