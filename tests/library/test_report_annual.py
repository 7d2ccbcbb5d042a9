"""`report.annual` on real flights: right figures, the same bytes, clear refusals."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pymupdf
import pytest
from pydantic import ValidationError
from pypdf import PdfReader
from reportlab.lib.units import mm

from jobs import Discard, StopRequested
from jobs.library import annual_report
from jobs.testing import Finished, run

Small = Callable[..., str]


def report(**params: Any) -> Finished:
    return run(annual_report, {"carrier": "UA", "year": 2013, **params})


def refusal(**params: Any) -> str:
    finished = report(**params)
    assert isinstance(finished.error, Discard), finished.error
    assert not finished.files
    return str(finished.error)


def pages_of(finished: Finished, folder: Path) -> list[str]:
    path = folder / "read-back.pdf"
    path.write_bytes(finished.files["report.pdf"])
    return [page.extract_text() for page in PdfReader(path).pages]


def as_printed(headline: dict[str, Any]) -> dict[str, str]:
    return {name: f"{value:,}".removesuffix(".0") for name, value in headline.items()}


@pytest.fixture(scope="session")
def united(tables: dict[str, str]) -> Finished:
    finished = report(**tables)
    assert finished.error is None
    return finished


class TestFigures:
    @pytest.mark.parametrize("carrier", ["EV", "HA"])
    def test_headline_figures_equal_those_of_sql(
        self, carrier: str, tables: dict[str, str], by_sql: Callable[[str], dict[str, str]]
    ) -> None:
        finished = report(**{**tables, "carrier": carrier})

        assert as_printed(finished.result["headline"]) == by_sql(carrier)

    def test_headline_figures_of_the_demo_equal_those_of_sql(
        self, united: Finished, by_sql: Callable[[str], dict[str, str]]
    ) -> None:
        assert as_printed(united.result["headline"]) == by_sql("UA")

    def test_every_headline_figure_stands_in_the_text(
        self, united: Finished, tmp_path: Path
    ) -> None:
        words = " ".join(pages_of(united, tmp_path)).split()

        for name, value in united.result["headline"].items():
            text = f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
            assert text in words, name

    def test_csv_and_parquet_give_the_same_figures(
        self, tables: dict[str, str], small: Small
    ) -> None:
        where = "WHERE month IN (1, 2)"
        from_parquet = report(flights=small(where), planes=tables["planes"])

        from_csv = report(flights=small(where, name="part.csv"), planes=tables["planes"])

        assert from_csv.result["headline"] == from_parquet.result["headline"]
        assert from_csv.result["headline"]["flights"] == 8983

    def test_missing_values_written_as_nan_count_as_missing(self, small: Small) -> None:
        as_null = report(flights=small())
        as_nan = report(
            flights=small(
                columns="* REPLACE (coalesce(dep_time, 'nan'::DOUBLE) AS dep_time,"
                " coalesce(arr_delay, 'nan'::DOUBLE) AS arr_delay)",
                name="nan.parquet",
            )
        )

        assert as_nan.result["headline"] == as_null.result["headline"]

    def test_upload_is_fetched(self, small: Small) -> None:
        data = Path(small()).read_bytes()

        finished = run(
            annual_report,
            {"carrier": "UA", "year": 2013, "flights": "upload:flights"},
            files={"upload:flights": data},
        )

        assert finished.result["headline"]["flights"] == 4637


class TestPages:
    def test_sections_appear_only_with_their_tables(
        self, united: Finished, small: Small, tmp_path: Path
    ) -> None:
        whole = " ".join(pages_of(united, tmp_path))
        bare = " ".join(pages_of(report(flights=small()), tmp_path))

        for words in ("Fleet", "Weather", "Newark Liberty Intl", "United Air Lines Inc."):
            assert words in whole
            assert words not in bare
        assert "Month by month" in bare

    def test_year_before_is_compared_where_the_table_has_it(
        self, small: Small, tmp_path: Path
    ) -> None:
        small(name="years/a.parquet")
        small("WHERE month = 1 AND day < 16", "* REPLACE (2012 AS year)", "years/b.parquet")

        cover, figures, *_ = pages_of(report(flights=str(tmp_path / "years")), tmp_path)

        assert "more than in 2012" in cover
        assert "Figure 2013 2012" in " ".join(figures.split())

    def test_pages_are_numbered(self, united: Finished, tmp_path: Path) -> None:
        pages = pages_of(united, tmp_path)

        assert united.result["pages"] == len(pages)
        for number, text in enumerate(pages, start=1):
            assert f"Page {number} of {len(pages)}" in text

    def test_contents_point_to_the_pages_where_sections_begin(
        self, united: Finished, tmp_path: Path
    ) -> None:
        path = tmp_path / "outline.pdf"
        path.write_bytes(united.files["report.pdf"])
        reader = PdfReader(path)

        entries = [entry for entry in reader.outline if not isinstance(entry, list)]
        assert len(entries) == 8
        for entry in entries:
            page = reader.get_destination_page_number(entry)
            assert page is not None
            assert str(entry.title) in reader.pages[page].extract_text()

    def test_header_of_a_long_table_is_repeated(
        self, tables: dict[str, str], tmp_path: Path
    ) -> None:
        pages = pages_of(report(**tables, destinations=100), tmp_path)

        with_destinations = [page for page in pages if "Airport" in page and "Code" in page]
        assert len(with_destinations) >= 2

    def test_names_from_the_data_cannot_break_the_page(self, small: Small, tmp_path: Path) -> None:
        airlines = tmp_path / "airlines.csv"
        airlines.write_text("carrier,name\nUA,<b>Łódź & Søn 航空\n", encoding="utf-8")

        cover = pages_of(report(flights=small(), airlines=str(airlines)), tmp_path)[0]

        assert "<b>Łódź & Søn □□" in cover

    def test_same_params_give_the_same_bytes(
        self, united: Finished, tables: dict[str, str]
    ) -> None:
        again = report(**tables)

        assert again.files["report.pdf"] == united.files["report.pdf"]

    @pytest.mark.parametrize("rows", [1, 50_000, 10_000_000])
    def test_parts_of_any_size_give_the_same_bytes(
        self, rows: int, united: Finished, tables: dict[str, str], tmp_path: Path
    ) -> None:
        path = tmp_path / "flights.parquet"
        pq.write_table(pq.read_table(tables["flights"]), path, row_group_size=20_000)

        parted = report(**{**tables, "flights": str(path)}, partition_rows=rows)

        assert len(parted.chunks) == {1: 17, 50_000: 9, 10_000_000: 0}[rows]
        assert parted.files["report.pdf"] == united.files["report.pdf"]
        assert parted.result == united.result

    def test_table_that_would_be_one_part_is_read_by_the_join(self, united: Finished) -> None:
        assert united.chunks == []
        assert list(united.files) == ["report.pdf"]

    def test_airline_without_a_completed_flight_still_gets_a_report(self, small: Small) -> None:
        finished = report(flights=small("WHERE dep_time IS NULL AND month = 2"))

        assert finished.result["headline"]["on_time_pct"] is None
        assert finished.result["headline"]["cancelled_pct"] == 100.0


#: What an airport is called, and how the report writes it.
WRITTEN = {
    "ORD": ("Łódź im. Władysława Reymonta", "Łódź im. Władysława Reymonta"),
    "IAH": ("Київ «Бориспіль», Ґ Є Ї", "Київ «Бориспіль», Ґ Є Ї"),
    "SFO": ("Αθήνα Ελευθέριος Βενιζέλος", "Αθήνα Ελευθέριος Βενιζέλος"),
    "LAX": ("İstanbul Sabiha Gökçen, ığş", "İstanbul Sabiha Gökçen, ığş"),
    "DEN": ("Đà Nẵng e\u0301", "Đà Nẵng é"),
    "BOS": ("東京 \uff28aneda", "□□ Haneda"),
    "MCO": ("Pilot 👩\u200d✈\ufe0f\x07\u00ad!", "Pilot □□!"),
}


def named(folder: Path, table: str, key: str, names: dict[str, str]) -> str:
    path = folder / f"{table}.csv"
    rows = [f"{key},name", *(f'{code},"{name}"' for code, name in names.items())]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(path)


class TestLetters:
    def test_names_of_many_scripts_read_back_as_they_were(
        self, small: Small, tmp_path: Path
    ) -> None:
        names = {code: name for code, (name, _) in WRITTEN.items()}
        finished = report(
            flights=small(),
            airlines=named(tmp_path, "airlines", "carrier", {"UA": "Ελληνικές Αερογραμμές 航空"}),
            airports=named(tmp_path, "airports", "faa", names),
            title="Річний звіт · Raport roczny",
        )

        pages = [" ".join(page.split()) for page in pages_of(finished, tmp_path)]
        assert "Ελληνικές Αερογραμμές □□ Річний звіт · Raport roczny 2013" in pages[0]
        network = next(page for page in pages if "Code Airport" in page)
        for code, (_, written) in WRITTEN.items():
            assert f"{code} {written} " in network
        title = PdfReader(tmp_path / "read-back.pdf").metadata.title
        assert title == "Ελληνικές Αερογραμμές 航空 - Річний звіт · Raport roczny 2013"

    def test_every_font_is_embedded_once(self, united: Finished, tmp_path: Path) -> None:
        path = tmp_path / "fonts.pdf"
        path.write_bytes(united.files["report.pdf"])

        fonts = {
            font.idnum: font.get_object()
            for page in PdfReader(path).pages
            for font in page["/Resources"]["/Font"].values()
        }
        assert sorted(font["/BaseFont"] for font in fonts.values()) == [
            "/AAAAAA+Lato-Bold",
            "/AAAAAA+Lato-Regular",
        ]
        assert all("/FontFile2" in font["/FontDescriptor"] for font in fonts.values())

    @pytest.mark.parametrize("letters", ["Ǆ", "wide word "])
    def test_the_widest_names_stay_in_their_boxes(
        self, letters: str, tables: dict[str, str], small: Small, tmp_path: Path
    ) -> None:
        name, code = (letters * 80)[:80], (letters * 300)[:300]
        flights = small(columns=f"* REPLACE (if(dest = 'ORD', '{code}', dest) AS dest)")
        given = {
            **tables,
            "flights": flights,
            "airlines": named(tmp_path, "airlines", "carrier", dict.fromkeys(("UA", "AA"), name)),
            "airports": named(tmp_path, "airports", "faa", dict.fromkeys((*WRITTEN, code), name)),
        }
        pages = lines_of(report(**given, title=name[:60].strip()))

        on_band = [line for line in pages[0] if line.colour == 0xFFFFFF]
        assert len(on_band) > 3
        assert all(line.y < 82 * mm for line in on_band)
        for page in pages:
            assert min(line.left for line in page) > 20 * mm - 0.5
            assert max(line.right for line in page) < (210 - 20) * mm + 0.5
            for one, other in itertools.combinations(page, 2):
                beside = one.right < other.left + 0.5 or other.right < one.left + 0.5
                assert beside or abs(one.y - other.y) > 0.8 * min(one.size, other.size)


@dataclass
class Line:
    """A run of letters on a page, in points from the top left."""

    left: float
    right: float
    y: float
    size: float
    colour: int


def lines_of(finished: Finished) -> list[list[Line]]:
    """The runs of each page, by the metrics of the fonts in the file."""
    with pymupdf.open(stream=finished.files["report.pdf"], filetype="pdf") as document:
        return [
            [
                Line(
                    span["bbox"][0], span["bbox"][2], span["origin"][1], span["size"], span["color"]
                )
                for block in page.get_text("dict")["blocks"]
                for line in block["lines"]
                for span in line["spans"]
                if span["text"].strip()
            ]
            for page in document
        ]


class TestProgress:
    def test_progress_never_falls_and_ends_at_one(self, united: Finished) -> None:
        fractions = [fraction for fraction, _ in united.progress if fraction is not None]

        assert fractions == sorted(fractions)
        assert fractions[0] == 0.0
        assert fractions[-1] == 1.0
        assert len(fractions) > 6

    def test_each_part_tells_how_far_it_is(self, tables: dict[str, str], tmp_path: Path) -> None:
        path = tmp_path / "flights.parquet"
        pq.write_table(pq.read_table(tables["flights"]), path, row_group_size=200_000)

        finished = report(**{**tables, "flights": str(path)}, partition_rows=200_000)

        for part, rows in zip(finished.chunks, ("200,000", "136,776"), strict=True):
            fractions = [fraction for fraction, _ in part.progress if fraction is not None]
            assert fractions == sorted(fractions)
            assert part.progress[-1] == (1.0, f"Read {rows} rows of flights")

    @pytest.mark.parametrize("calls", [1, 5, 14])
    def test_stop_is_obeyed_and_leaves_no_file(self, calls: int, tables: dict[str, str]) -> None:
        finished = run(annual_report, {"carrier": "UA", "year": 2013, **tables}, stop_after=calls)

        assert isinstance(finished.error, StopRequested)
        assert not finished.files


class TestBadInput:
    def test_table_without_rows(self, small: Small) -> None:
        reason = refusal(flights=small("WHERE month = 13"))

        assert reason == "flights: part.parquet has no rows; give a table with flights"

    def test_missing_table(self, tmp_path: Path) -> None:
        assert refusal(flights=str(tmp_path / "none.parquet")) == (
            f"flights: there is nothing at {tmp_path}/none.parquet; "
            "correct the URI in params.flights"
        )

    def test_folder_without_tables(self, tmp_path: Path) -> None:
        (tmp_path / "readme.txt").write_text("nothing here")

        assert "flights: no .parquet or .pq or .csv files at" in refusal(flights=str(tmp_path))

    def test_missing_upload(self) -> None:
        reason = refusal(flights="upload:gone")

        assert reason.startswith("flights: upload:gone cannot be fetched")
        assert reason.endswith("upload it, or correct the URI")

    def test_missing_column(self, small: Small) -> None:
        reason = refusal(flights=small(columns="* EXCLUDE (arr_delay, dest)"))

        assert reason.startswith("flights: part.parquet has no columns dest, arr_delay; add them;")

    def test_column_missing_in_one_file_of_many(self, small: Small, tmp_path: Path) -> None:
        small(name="all/a.parquet")
        small("WHERE month = 2", "* EXCLUDE hour", "all/b.parquet")

        reason = refusal(flights=str(tmp_path / "all"))

        assert reason.startswith("flights: b.parquet has no column hour; add it;")

    def test_column_of_the_wrong_type(self, small: Small) -> None:
        reason = refusal(flights=small(columns="* REPLACE ('x' AS distance)"))

        assert reason == (
            "flights: column distance of part.parquet holds string, not numbers; "
            "write it as numbers"
        )

    def test_bad_cell_of_a_csv_file(self, tmp_path: Path, small: Small) -> None:
        path = Path(small("WHERE month = 1 AND day = 1", name="part.csv"))
        path.write_text(path.read_text().replace(",1400,", ",many,"))

        reason = refusal(flights=str(path))

        assert reason.startswith("flights: part.csv cannot be read as CSV (In CSV column #")
        assert "many" in reason

    @pytest.mark.parametrize("name", ["flights.parquet", "flights.csv", "flights"])
    def test_file_that_is_neither_parquet_nor_csv(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / name
        path.write_bytes(b"%PDF-1.7\0\1\2" + bytes(range(256)) * 8)

        assert refusal(flights=str(path)) == (
            f"flights: {name} is neither Parquet nor CSV; "
            "give a Parquet file, or CSV in UTF-8 with commas and a header line"
        )

    def test_torn_parquet_file(self, small: Small) -> None:
        path = Path(small())
        path.write_bytes(path.read_bytes()[:5000])

        assert "part.parquet cannot be read as Parquet (" in refusal(flights=str(path))

    @pytest.mark.parametrize(("at", "what"), [(4, "cannot be read ("), (-60, "as Parquet (")])
    def test_damaged_parquet_file(self, at: int, what: str, small: Small) -> None:
        """In its pages, and in its footer."""
        path = Path(small())
        data = bytearray(path.read_bytes())
        start = at % len(data)
        data[start : start + 40] = b"\xff" * 40
        path.write_bytes(data)

        reason = refusal(flights=str(path))

        assert reason.startswith("flights: part.parquet cannot be read")
        assert what in reason

    def test_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "flights.csv").touch()

        reason = refusal(flights=str(tmp_path / "flights.csv"))

        assert reason == "flights: flights.csv is empty; give a Parquet or CSV file with rows"

    def test_unknown_carrier(self, tables: dict[str, str], small: Small) -> None:
        by_airlines = refusal(flights=small(), airlines=tables["airlines"], carrier="ZZ")
        by_flights = refusal(flights=small(), carrier="ZZ")

        assert by_airlines.startswith("airlines: no carrier 'ZZ'; use one of 9E, AA, AS,")
        assert by_flights.startswith("flights: no flights of carrier 'ZZ'; use one of 9E, AA, AS,")

    def test_year_without_flights(self, small: Small) -> None:
        reason = refusal(flights=small(), year=2019)

        assert reason == "flights: no flights of UA in 2019; use one of the years 2013"

    def test_year_whose_flights_have_no_month(self, small: Small) -> None:
        flights = small(columns="* REPLACE (NULL::int AS month)")

        reason = refusal(flights=flights, carrier="UA", year=2013)

        assert reason == "flights: those of UA in 2013 have no month; fill the column"

    def test_credentials_in_a_uri_are_not_repeated(self) -> None:
        reason = refusal(flights="sftp://me:hunter2@host/flights.csv?sig=abc")

        assert "hunter2" not in reason.partition("(")[0]
        assert "sig=abc" not in reason.partition("(")[0]

    @pytest.mark.parametrize(
        "params",
        [
            {"carrier": "U/A"},
            {"year": 13},
            {"flights": ""},
            {"colour": "red"},
            {"partition_rows": 0},
        ],
    )
    def test_params_are_validated(self, params: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match=next(iter(params))):
            report(**{"flights": "flights.csv", **params})
