"""Whatever is asked by the OpenAPI description, sensible or not: never an error of the server's own."""

from urllib.parse import quote

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Picture
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from desks import TOKEN, Office, brick

CASE = "brick.nii.gz"


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("scans")
    brick(folder / CASE)
    Picture.new("L", (40, 30), 90).save(folder / "spot.png")
    office = Office(folder, max_open=4)
    yield office
    office.closed()


def test_no_question_brings_the_server_down(office: Office) -> None:
    headers = {"authorization": f"Bearer {TOKEN}", "host": "localhost:8000"}
    description = schemathesis.openapi.from_asgi("/api/v1/openapi.json", office.app, headers=headers)
    asked: set[str] = set()
    for found in description.get_all_operations():
        operation = found.ok()

        @settings(max_examples=10, suppress_health_check=list(HealthCheck), deadline=None, derandomize=True)
        @given(operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            if "case" in case.path_parameters:
                case.path_parameters["case"] = CASE  # one that exists: the answers behind that are the interesting ones
                case.headers["x-palpate-lease"] = office.desk.leases.take(CASE, take_over=True)
            answer = case.call(headers=headers)
            case.validate_response(answer, checks=[not_a_server_error, response_schema_conformance])

        ask()
        asked.add(operation.label)
    assert {"POST /api/v1/cases/{case}/prompts", "POST /api/v1/cases/{case}/undo"} <= asked


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_no_path_does(office: Office, first: str, second: str) -> None:
    answer = office.client.get(f"/api/v1/{quote(first, safe='/')}/{quote(second)}")
    assert answer.status_code < 500
