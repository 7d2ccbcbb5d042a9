"""The one model that a process keeps loaded, and what it takes and gives.

Rule 1: one model is kept, by the content of its file; the next of another content takes its place,
and memory has room for one: the old is let go before the new is loaded. Rule 2: only an attempt
that ended by itself leaves it: one that was stopped, or broke, takes it along. Rule 3: nobody loses
it in use: of attempts that run side by side the last one frees it. Rule 4: a GPU is used by those
whose worker holds it, also where CUDA would show it to others.
"""

import contextlib
import math
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jobs.library.model import needs_infer
from jobs.library.model.guard import refuse_other_files
from jobs.outcome import Discard

__all__ = ["Device", "Model", "Tensor", "borrowed"]

Device = Literal["auto", "cpu", "gpu"]

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
#: To try all of cuDNN's ways takes half a second for some sizes of a batch, the last one's too, and
#: finds none faster than the one that cuDNN would choose (ResNet-50 on an H200, batches to 110).
_CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC"}
#: In what onnxruntime says of a failure: it is the machine's, no room left for one, and may pass.
_OF_THE_MACHINE = re.compile(
    r"(CUDA|CUDNN|CUBLAS) failure [^;\n]+|Available memory of [^;\n]+"
    r"|Failed to allocate memory[^;\n]*|std::bad_alloc"
)
#: In the environment of every handler that a worker runs.
_OF_A_WORKER = "DRAYMAN_KEEPER"
#: ONNX types and the NumPy types that hold them. Left out: what NumPy has no type for (bfloat16,
#: float8, ...), sequences and maps.
_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}
#: What one row, and one batch, may take of memory. A batch is cut to fit, a row cannot be.
ROW_BYTES_MAX, BATCH_BYTES_MAX = 64 << 20, 64 << 20
#: What a string is counted as.
_TEXT_BYTES = 64


@dataclass(frozen=True)
class Tensor:
    """One input or output of a model."""

    name: str
    #: As ONNX says it, for messages: `tensor(float)`.
    kind: str
    #: After the batch axis; None where only the data tells.
    row_shape: tuple[int | None, ...]
    #: What the batch axis is fixed to, None if it is free.
    batch: int | None

    @property
    def dtype(self) -> str:
        """The NumPy type; `object` for strings."""
        return _TYPES[self.kind]

    @property
    def row_size(self) -> int:
        """Values of a row, axes that only the data tells counted as one."""
        return math.prod(axis or 1 for axis in self.row_shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, at least."""
        import numpy as np

        wide = _TEXT_BYTES if self.dtype == "object" else np.dtype(self.dtype).itemsize
        return self.row_size * wide


class Model:
    """A loaded model. Raises Discard where it is none that takes rows in batches."""

    def __init__(self, key: tuple[str, str], session: Any) -> None:
        self.key = key
        self.device: Literal["cpu", "gpu"] = "gpu" if _CUDA in session.get_providers() else "cpu"
        self.inputs = [_input(node) for node in session.get_inputs()]
        #: By name, in the model's order; those of other types than tensors are None.
        self.outputs = {node.name: _output(node) for node in session.get_outputs()}
        #: What the model's batch axis is fixed to; None if it is free.
        self.batch = _one_batch(self.inputs)
        self._session: Any = session
        # Both under _lock.
        self.users = 0
        self.retired = False

    def wanted(self, names: Sequence[str] | None) -> list[Tensor]:
        """Return the outputs of these names, all for None. Raises Discard naming the fix."""
        known = ", ".join(self.outputs)
        found = []
        for name in names or self.outputs:
            if name not in self.outputs:
                raise Discard(f"outputs: the model has no {name!r}; it has {known}")
            output = self.outputs[name]
            if output is None:
                raise Discard(
                    f"outputs: {name!r} is no tensor that a column can hold; name those to keep "
                    f"of {known}, or export the model without it (scikit-learn: zipmap=False)"
                )
            found.append(output)
        return found

    def rows_at_once(self, asked: int, outputs: Sequence[Tensor]) -> int:
        """Return how many rows make a batch. Raises Discard if one row is too large."""
        row = 0
        for field, tensors in (("model", self.inputs), ("outputs", outputs)):
            for tensor in tensors:
                if tensor.row_bytes > ROW_BYTES_MAX:
                    raise Discard(
                        f"{field}: a row of {tensor.name!r} is {tensor.row_bytes:,} bytes, "
                        f"{ROW_BYTES_MAX:,} at most; use a model with a smaller one"
                    )
                row += tensor.row_bytes
        fitting = max(1, BATCH_BYTES_MAX // max(1, row))
        if self.batch is not None:
            if self.batch > fitting:
                raise Discard(
                    f"model: its batch axis is fixed to {self.batch} rows of {row:,} bytes, more "
                    f"than {BATCH_BYTES_MAX:,} together; export it with a free batch axis"
                )
            return self.batch
        return min(asked, fitting)

    def run(self, inputs: dict[str, Any], rows: int, outputs: Sequence[Tensor]) -> list[Any]:
        """Return the outputs for a batch. Raises Discard where they are not one per row."""
        import numpy as np
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

        missing = (self.batch or rows) - rows
        if missing:
            # The last batch of a model that takes no fewer: filled up, and cut again.
            inputs = {
                name: np.concatenate([value, np.repeat(value[-1:], missing, axis=0)])
                for name, value in inputs.items()
            }
        try:
            values = self._session.run([output.name for output in outputs], inputs)
        except InvalidArgument as error:
            raise Discard(f"model: does not take the rows ({_line(error)})") from error
        for output, value in zip(outputs, values, strict=True):
            if not value.shape or value.shape[0] != rows + missing:
                raise Discard(
                    f"outputs: {output.name!r} has the shape {value.shape} for {rows + missing} "
                    "rows, so its first axis is no batch axis; leave it out of outputs"
                )
        return [value[:rows] for value in values]

    def free(self) -> None:
        """Let the memory go, the GPU's too, whoever still holds this object."""
        self._session = None


_lock = threading.Lock()
_kept: Model | None = None


@contextlib.contextmanager
def borrowed(data: bytes, digest: str, device: Device) -> Iterator[tuple[Model, bool]]:
    """Lend the model of these bytes, and tell whether it had to be loaded for it.

    Raises Discard for what is no model, and for `gpu` where none can be used.
    """
    with needs_infer():
        import onnxruntime
    global _kept
    lacks = ""
    if _CUDA not in onnxruntime.get_available_providers():
        lacks = "its onnxruntime is built without CUDA"
    elif not _holds_gpu():
        lacks = "num_gpus of its pool is 0"
    if device == "gpu" and lacks:
        raise _no_gpu(lacks)
    on = _CPU if device == "cpu" or lacks else _CUDA
    with _lock:
        is_new = _kept is None or _kept.key != (digest, on)
        if is_new:
            _retire(_kept)
            _kept = None
            _kept = Model((digest, on), _load(data, on))
        model = _kept
        assert model is not None
        model.users += 1
    del data
    is_done = False
    try:
        if device == "gpu" and model.device != "gpu":
            raise _no_gpu("CUDA does not start, the log says why")
        yield model, is_new
        is_done = True
    except Discard:
        is_done = True  # The rows were refused; the model is as good as before.
        raise
    finally:
        with _lock:
            model.users -= 1
            if not is_done:
                _retire(model)
                if _kept is model:
                    _kept = None
            elif model.retired and not model.users:
                model.free()


def _retire(model: Model | None) -> None:
    if model is not None:
        model.retired = True
        if not model.users:
            model.free()


def _holds_gpu() -> bool:
    """Whether a GPU is this handler's: Ray tells workers that hold one which, by this variable.

    It tells the others nothing, and CUDA then shows them all.
    """
    held = os.environ.get("CUDA_VISIBLE_DEVICES")
    return _OF_A_WORKER not in os.environ if held is None else held != ""


def _no_gpu(reason: str) -> Discard:
    return Discard(
        f"device: this worker has no GPU that can be used ({reason}); submit to a queue whose "
        "workers have one, or set device to auto or cpu"
    )


def _load(data: bytes, provider: str) -> Any:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    refuse_other_files(data)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    options.inter_op_num_threads = 1
    # Threads that spin between batches take the cores of the handlers beside this one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # ORT's own format may name other files too, and is not what the guard read.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.log_severity_level = 3
    if provider == _CUDA:
        onnxruntime.preload_dlls()
    providers = [_CPU] if provider == _CPU else [(_CUDA, _CUDA_OPTIONS), _CPU]
    try:
        session = onnxruntime.InferenceSession(data, options, providers=providers)
    except (state.InvalidProtobuf, state.InvalidGraph, state.InvalidArgument, state.Fail) as error:
        if told := _OF_THE_MACHINE.search(str(error)):
            raise RuntimeError(
                f"model: the machine failed to load it ({told[0].strip()})"
            ) from error
        raise Discard(f"model: cannot be loaded ({_line(error)}); export it again") from error
    except state.NotImplemented as error:
        raise Discard(
            f"model: needs what onnxruntime {onnxruntime.__version__} lacks ({_line(error)})"
        ) from error
    # Else a batch that fails on the GPU is run on the CPU, and so are all after it, unnoticed.
    session.disable_fallback()
    return session


def _threads() -> int:
    """Return the cores that are this handler's: Ray tells its workers so, by this variable."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(int(told), cores or 1) if told.isdecimal() and int(told) else cores or 1


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:500]


def _input(node: Any) -> Tensor:
    if node.type not in _TYPES:
        raise Discard(f"model: input {node.name!r} is {node.type}, which no column can hold")
    if not node.shape:
        raise Discard(
            f"model: input {node.name!r} has no batch axis; export it with a first axis for rows"
        )
    found = _tensor(node)
    free = [axis for axis in node.shape[1:] if not isinstance(axis, int) or axis < 1]
    if free:
        raise Discard(
            f"model: input {node.name!r} has the axis {str(free[0])!r} of no fixed size beside the "
            f"batch axis ({node.shape}); export it with a fixed one"
        )
    return found


def _output(node: Any) -> Tensor | None:
    return _tensor(node) if node.type in _TYPES else None


def _tensor(node: Any) -> Tensor:
    shape = [axis if isinstance(axis, int) and axis > 0 else None for axis in node.shape]
    return Tensor(node.name, node.type, tuple(shape[1:]), shape[0] if shape else None)


def _one_batch(inputs: Sequence[Tensor]) -> int | None:
    if not inputs:
        raise Discard("model: takes no input; there is nothing to give it")
    fixed = {tensor.batch for tensor in inputs} - {None}
    if len(fixed) > 1:
        told = ", ".join(f"{tensor.name!r}: {tensor.batch}" for tensor in inputs)
        raise Discard(f"model: its inputs' first axes differ ({told}), so they are no batch axis")
    return fixed.pop() if fixed else None
