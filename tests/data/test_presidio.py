"""Tests that Presidio finds personal data, if it is installed."""

import pytest

from instructjax.data import presidio
from tests.data import planted

pytest.importorskip("presidio_analyzer", reason="the extra presidio is not installed")


@pytest.fixture(scope="module")
def find():
    return presidio.finder("--pii")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("mail me at ann.b@example.org", "email address"),
        ("card 4111 1111 1111 1111", "credit card"),
        ("call (415) 555-2671", "phone number"),
        ("pay to DE89370400440532013000", "iban code"),
        ("at 81.2.3.4", "ip address"),
        ("on 1990-01-01 at http://x.com, 12345678 times", ""),
    ],
)
def test_patterns_are_found(find, text, kind):
    assert find(text) == kind


def test_more_than_half_of_planted_personal_data_is_found(find):
    records = planted.generate(400)
    reasons = [f"personal data: {kind}" if (kind := find(record["prompt"])) else "" for record in records]
    recall, precision = planted.measure(records, reasons, ("personal",))["personal"]
    assert recall > 0.5 and precision > 0.3
