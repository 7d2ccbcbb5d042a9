"""`report.deliver`: its steps fit each other; `report.fetch`: the report from its copies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from jobs import Discard
from jobs.library.mail_send import MailParams
from jobs.library.report_annual import ReportParams, annual_report
from jobs.library.report_deliver import DeliveryParams, deliver_report
from jobs.library.report_fetch import FetchParams, fetch_tables
from jobs.testing import Finished, run

Small = Callable[..., str]


def asked(**params: Any) -> dict[str, Any]:
    whole = {"carrier": "UA", "year": 2013, "flights": "f.csv", "to": ["a@b.org"], **params}
    return DeliveryParams.model_validate(whole).model_dump(mode="json")


def resolved(value: Any, params: dict[str, Any], done: dict[str, Finished]) -> Any:
    """What a step's params are once those before it are done."""
    if isinstance(value, list):
        return [resolved(item, params, done) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$param": path}:
            return params[path]
        case {"$file": where}:
            step, _, name = where.partition("/")
            assert name in done[step].files
            return f"output:job-1/{step}/{name}"
        case {"$result": where}:
            step, *keys = where.split(".")
            found = done[step].result
            for key in keys:
                found = found[key]
            return found
    return {key: resolved(item, params, done) for key, item in value.items()}


class TestWorkflow:
    def test_steps_wait_for_what_they_use(self) -> None:
        assert [(s.name, s.type) for s in deliver_report.steps] == [
            ("fetch", "report.fetch"),
            ("render", "report.annual"),
            ("mail", "mail.send"),
        ]
        fetch, render, mail = (step.params for step in deliver_report.steps)
        assert fetch["flights"] == {"$param": "flights"}
        assert render["flights"] == {"$result": "fetch.tables.flights"}
        assert render["carrier"] == {"$param": "carrier"}
        assert mail["attachments"] == [
            {"uri": {"$file": "render/report.pdf"}, "name": "report.pdf"}
        ]
        assert mail["figures"] == {"$result": "render.headline"}

    @pytest.mark.parametrize("without", [[], ["planes", "weather"]])
    def test_params_of_each_step_fit_its_type(
        self, without: list[str], tables: dict[str, str]
    ) -> None:
        given = {name: uri for name, uri in tables.items() if name not in without}
        params = asked(**given, cc=["c@b.org"], in_doubt="resend")
        fetch, render, mail = (step.params for step in deliver_report.steps)

        fetched = run(
            fetch_tables,
            FetchParams.model_validate(resolved(fetch, params, {})),
            task_id="fetch",
        )
        made = ReportParams.model_validate(resolved(render, params, {"fetch": fetched}))
        copies = {f"output:job-1/fetch/{name}": data for name, data in fetched.files.items()}
        report = run(annual_report, made, files=copies)
        sent = MailParams.model_validate(resolved(mail, params, {"render": report}))

        assert made.planes == (None if without else "output:job-1/fetch/planes.parquet")
        assert report.files == run(annual_report, {**params_of_report(params)}).files
        assert sent.recipients() == ["a@b.org", "c@b.org"]
        assert sent.figures == report.result["headline"]
        assert (sent.in_doubt, sent.server) == ("resend", "smtp_url")

    @pytest.mark.parametrize("params", [{"to": []}, {"carrier": "U/A"}, {"colour": "red"}])
    def test_params_are_validated(self, params: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match=next(iter(params))):
            asked(**params)


def params_of_report(params: dict[str, Any]) -> dict[str, Any]:
    return {name: params[name] for name in ReportParams.model_fields}


class TestFetch:
    def test_tables_that_were_not_given_are_null(self, small: Small) -> None:
        finished = run(fetch_tables, {"flights": small()}, task_id="fetch")

        assert finished.result == {
            "tables": {
                "flights": "output:job-1/fetch/flights.parquet",
                "airlines": None,
                "airports": None,
                "planes": None,
                "weather": None,
            },
            "rows": {
                "flights": 27_004,
                "airlines": None,
                "airports": None,
                "planes": None,
                "weather": None,
            },
        }
        assert list(finished.files) == ["flights.parquet"]

    def test_report_of_a_copied_folder_of_csv_has_the_same_figures(
        self, small: Small, tmp_path: Path
    ) -> None:
        small("WHERE month = 1", name="all/a.csv")
        small("WHERE month = 2", name="all/b.csv")
        asked = {"carrier": "UA", "year": 2013}

        copied = run(fetch_tables, {"flights": str(tmp_path / "all")}, task_id="fetch")
        uri = copied.result["tables"]["flights"]
        files = {uri: copied.files["flights.parquet"]}

        there = run(annual_report, {**asked, "flights": uri}, files=files)
        here = run(annual_report, {**asked, "flights": str(tmp_path / "all")})
        assert there.result["headline"] == here.result["headline"]

    def test_bad_table_is_told_before_any_is_copied(self, small: Small, tmp_path: Path) -> None:
        (tmp_path / "planes.csv").write_text("tailnum,year\nN1,1999\n")

        finished = run(fetch_tables, {"flights": small(), "planes": str(tmp_path / "planes.csv")})

        assert isinstance(finished.error, Discard)
        assert str(finished.error).startswith("planes: planes.csv has no columns manufacturer,")
        assert not finished.files

    def test_table_without_rows_is_copied_with_its_columns(self, small: Small) -> None:
        finished = run(fetch_tables, {"flights": small("WHERE month = 13")})

        assert finished.result["rows"]["flights"] == 0
        assert finished.files["flights.parquet"].startswith(b"PAR1")
