"""The rules find the forms of personal data, and not the numbers of other things."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.data import personal_data
from tests.data import planted


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Write to Ann.Lee+news@mail.example.co.uk.", "e-mail"),
        ("a@b", ""),
        ("@user, see user@", ""),
        ("call +49 30 1234567 now", "phone number"),
        ("+1 (415) 555-2671", "phone number"),
        ("(415) 555-2671", "phone number"),
        ("1-415-555-2671", "phone number"),
        ("555-1234", ""),
        ("1939-1945", ""),
        ("4111 1111 1111 1111", "card number"),
        ("4111-1111-1111-1111", "card number"),
        ("378282246310005", "card number"),
        ("4111 1111 1111 1112", ""),
        ("0000 0000 0000 0000", ""),
        ("3.1415926535897932", ""),
        ("8.8.8.8", "IP address"),
        ("at 8.8.8.8.", "IP address"),
        ("2001:4860:4860::8888", "IP address"),
        ("192.168.0.1 and 127.0.0.1", ""),
        ("999.8.8.8", ""),
        ("1.2.3.4.5", ""),
        ("12:30:45:10", ""),
        ("std::vector", ""),
        ("221B Baker Street", "address"),
        ("1600 N. Old Mill Rd", "address"),
        ("5 42nd Avenue", "address"),
        ("PO Box 12", "address"),
        ("I ate 12 Apples on the way", ""),
        ("", ""),
    ],
)
def test_forms(text, kind):
    assert personal_data.find(text) == kind
    assert personal_data.find(f"before {text}\nafter") == kind


@given(st.randoms(use_true_random=False), st.integers(0, len(planted.PERSONAL) - 1))
def test_planted_forms_with_a_rule_are_found(rng, form):
    text = planted.PERSONAL[form](rng)
    without_rule = text.startswith(("tel.", "Ahornweg"))
    assert bool(personal_data.find(f"a {text} b")) != without_rule


@given(st.text(alphabet="a1@.:-+( )4", max_size=60))
def test_any_text_is_accepted(text):
    assert personal_data.find(text) in ("", "e-mail", "card number", "phone number", "IP address", "address")


@given(st.lists(st.integers(0, 9), min_size=12, max_size=18), st.integers(1, 9))
def test_the_check_digit_finds_every_wrong_digit(digits, change):
    whole = next("".join(map(str, [*digits, last])) for last in range(10) if _passes([*digits, last]))
    place = random.Random(whole).randrange(len(whole))
    wrong = f"{whole[:place]}{(int(whole[place]) + change) % 10}{whole[place + 1 :]}"
    assert personal_data.passes_luhn(whole) and not personal_data.passes_luhn(wrong)


def _passes(digits):
    return personal_data.passes_luhn("".join(map(str, digits)))
