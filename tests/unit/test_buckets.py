"""Which buckets params may name: any but where Drayman keeps what all tenants sent and made."""

from pathlib import Path
from typing import Any

import pytest

from jobs.buckets import OWN_URLS_ENV, refuse_own
from jobs.errors import InvalidInput
from jobs.library.report_annual import annual_report
from jobs.library.table_export import table_export
from jobs.library.table_import import table_import
from jobs.testing import run


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWN_URLS_ENV, "s3://bucket/team/drayman/\ngs://journal")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/team/drayman/uploads/shop/a.csv",
        "s3://bucket/team/drayman",
        "s3://key:secret@bucket/team/drayman/results/?region=eu-central-1",
        "s3://bucket//team/./other/../drayman/results/x",
        "s3://bucket/team/dr%61yman/results/x",
        # A listing of these, or a pattern, would go on into the store.
        "s3://bucket",
        "s3://bucket/team/",
        "s3://bucket/team/dray*/results/x",
        "s3://bucket/**/x.parquet",
        "gs://journal/anything",
        "gcs://journal/anything",
    ],
)
def test_what_leads_into_the_store_is_refused(uri: str) -> None:
    with pytest.raises(InvalidInput, match="leads into Drayman's own store"):
        refuse_own(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/team/a.csv",
        "s3://bucket/team/drayman-data/*.csv",
        "s3://bucket/drayman/a.csv",
        "s3://other/team/drayman/a.csv",
        "gs://bucket/team/drayman/a.csv",
    ],
)
def test_what_lies_beside_it_is_not(uri: str) -> None:
    refuse_own(uri)


def test_a_store_on_a_disk_closes_no_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWN_URLS_ENV, "/var/lib/drayman\n")

    refuse_own("s3://bucket/team/drayman/a.csv")


@pytest.mark.parametrize("name", ["results/a.parquet", "results/", "*/a.parquet"])
def test_types_that_open_buckets_themselves_ask_before(name: str, tmp_path: Path) -> None:
    uri = f"s3://bucket/team/drayman/{name}"
    finished = [
        run(table_export, {"source": uri}),
        run(annual_report, {"year": 2013, "carrier": "UA", "flights": uri}),
        run(table_import, imported(into=uri), files={"upload:a.csv": b"a\n1\n"}),
    ]

    told = [str(one.error) for one in finished]
    assert all("leads into Drayman's own store" in error for error in told), told


def imported(into: str) -> dict[str, Any]:
    return {"source": "upload:a.csv", "columns": [{"name": "a", "type": "string"}], "into": into}
