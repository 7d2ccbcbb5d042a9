"""Looks through an ONNX file for weights that lie in other files, before anything loads it.

A tensor may name a file, by any path, that the runtime then reads. Rule 1: a model that names one
is refused, wherever the file is: what a job may read is not the model's to say. Rule 2: nothing is
unpacked; the messages are walked where they lie, as protobuf writes them.
"""

from jobs.outcome import Discard

__all__ = ["refuse_other_files"]

#: Of each message, the fields that hold messages with tensors in them (onnx.proto).
_WITHIN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_GRAPH = 7
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
#: As deep as protobuf itself goes.
_DEPTH_MAX = 100
_TAG_MAX = (1 << 32) - 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _NotOnnx(Exception):
    """These bytes are no protobuf message."""


def refuse_other_files(data: bytes) -> None:
    """Raise Discard if `data` is no ONNX model, or one that keeps tensors in other files."""
    try:
        if not _walk(memoryview(data), "Model", 0):
            raise _NotOnnx
    except (_NotOnnx, IndexError):
        raise Discard("model: is not an ONNX file, or is cut short; export it again") from None


def _walk(data: memoryview, kind: str, depth: int) -> bool:
    """Walk one message; return whether it has a graph."""
    if depth > _DEPTH_MAX:
        raise _NotOnnx
    at, has_graph = 0, False
    while at < len(data):
        tag, at = _varint(data, at)
        if tag > _TAG_MAX:
            # Protobuf would drop the bits beyond, and see another field than is seen here.
            raise _NotOnnx
        number, wire = tag >> 3, tag & 7
        value, start = 0, at
        if wire == _VARINT:
            value, at = _varint(data, at)
        elif wire == _BYTES:
            length, start = _varint(data, at)
            at = start + length
        elif wire in {_FIXED64, _FIXED32}:
            at += 8 if wire == _FIXED64 else 4
        else:
            raise _NotOnnx
        if at > len(data):
            raise _NotOnnx
        if kind == "Tensor" and (
            number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)
        ):
            raise Discard(
                "model: keeps weights in other files (external data); save it as one file"
            )
        within = _WITHIN[kind].get(number)
        if within is not None and wire == _BYTES:
            has_graph = has_graph or (kind == "Model" and number == _GRAPH)
            _walk(data[start:at], within, depth + 1)
    return has_graph


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise _NotOnnx
