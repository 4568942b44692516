"""Finds text that looks like personal data: e-mail addresses, phone and card numbers, IP and street addresses.

The paper filters prompts of the training split for personally identifiable information (section 3.2), and does not say
how. These rules are ours. They find forms, not meanings: no names, no identity numbers, and addresses in English only.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

_EMAIL = re.compile(r"[\w.+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,24}\b")
_CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d.]*\d)")
_PHONE = re.compile(
    r"(?<![\w+])\+\d{1,3}[ .-]?(?:\(\d{1,5}\)[ .-]?)?\d(?:[ .-]?\d){5,12}(?!\w)"  # with the code of a country
    r"|(?<![\w(.-])(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4}(?![\w-])"  # North America
)
_IP4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\w)")
_IP6 = re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:{1,2}){3,7}[0-9A-Fa-f]{1,4}(?![\w:])")
_STREETS = "Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Way|Place|Pl|Square|Sq|Terrace"
_ADDRESS = re.compile(
    rf"\b\d{{1,5}}[A-Za-z]? (?:[NSEW]\.? )?(?:[A-Z][\w'-]*\.? |\d+(?:st|nd|rd|th) ){{1,3}}(?:{_STREETS})\b"
    r"|\bP\.? ?O\.? Box \d+\b"
)


def find(text: str) -> str:
    """Returns the first kind of personal data that a text seems to contain, such as "e-mail"; "" if there is none."""
    return next((kind for kind, contains in _RULES.items() if contains(text)), "")


def passes_luhn(number: str) -> bool:
    """Returns whether the last digit of a card's number is its check digit (ISO/IEC 7812); skips spaces and hyphens."""
    digits = [int(char) for char in reversed(number) if char in "0123456789"]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return bool(digits) and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _has_card(text: str) -> bool:
    return any(passes_luhn(found[0]) and len(set(found[0])) > 2 for found in _CARD.finditer(text))


def _has_ip(text: str) -> bool:
    return any(_is_global(found[0]) for pattern in (_IP4, _IP6) for found in pattern.finditer(text))


def _is_global(address: str) -> bool:
    """Returns whether an address belongs to somebody, unlike 127.0.0.1, 192.168.0.1 and 2001:db8::1."""
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


_RULES: dict[str, Callable[[str], bool]] = {
    "e-mail": lambda text: "@" in text and bool(_EMAIL.search(text)),
    "card number": _has_card,
    "phone number": lambda text: bool(_PHONE.search(text)),
    "IP address": _has_ip,
    "address": lambda text: bool(_ADDRESS.search(text)),
}
