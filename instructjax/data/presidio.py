"""Finds personal data with Microsoft's Presidio: its patterns, and names of people if a spaCy model is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from instructjax import warning_log
from instructjax.errors import InputError

MODEL = "en_core_web_lg"  # finds names; python -m spacy download en_core_web_lg
KINDS = (
    "CREDIT_CARD CRYPTO EMAIL_ADDRESS IBAN_CODE IP_ADDRESS PERSON PHONE_NUMBER UK_NHS US_BANK_NUMBER "
    "US_DRIVER_LICENSE US_ITIN US_PASSPORT US_SSN"
).split()  # not dates, places and URLs
_SURE = 0.4  # the least score; Presidio gives 0.4 to phone numbers


def finder(where: str) -> Callable[[str], str]:
    """Returns a function that finds the kind of personal data in an English text, such as "email address", or "".

    Args:
      where: the flag that asks for it, for the error.

    Raises:
      InputError: the package presidio-analyzer is missing.
    """
    try:
        import spacy
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import SpacyNlpEngine
    except ImportError:
        raise InputError(
            f"{where}: expected the package presidio-analyzer, found none; pip install 'instructjax[presidio]'"
        ) from None
    engine: Any = SpacyNlpEngine(models=[{"lang_code": "en", "model_name": MODEL}])
    if importlib.util.find_spec(MODEL):
        engine.load()
    else:
        warning_log.warn(f"{where}: the spaCy model {MODEL} is not installed, so names of people are not found")
        engine.nlp = {"en": spacy.blank("en")}
    analyzer = AnalyzerEngine(nlp_engine=engine, supported_languages=["en"])
    kinds = sorted({*KINDS} & {*analyzer.get_supported_entities("en")})

    def find(text: str) -> str:
        found = analyzer.analyze(text, language="en", entities=kinds, score_threshold=_SURE)
        return max(found, key=lambda one: one.score).entity_type.lower().replace("_", " ") if found else ""

    return find
