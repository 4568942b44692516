"""Every key is declared once. The declarations are the paper's recipe, and each is complete."""

import dataclasses
import importlib

import pytest

from configs import instructgpt
from instructjax.errors import ConfigError
from instructjax.models.config import TransformerConfig
from instructjax.recipe import check, declared
from instructjax.recipe.key import Section

KEYS = dict(declared.declared_keys())
RECIPES = ("instructgpt", "sandbox", "e2e", "dpo", "gsm8k", "arithmetic", "smollm2")


def test_the_declared_values_are_the_recipe_of_1p3b():
    assert declared.paper().to_dict() == instructgpt.get_config("1p3b").to_dict()
    assert not declared.paper().is_locked


@pytest.mark.parametrize("key", KEYS)
def test_a_value_is_in_its_range(key):
    assert KEYS[key].range.contains(KEYS[key].value)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_described(key):
    """Each key has a meaning, a unit or a source, in phrases that fit in a table."""
    found = KEYS[key]
    assert found.meaning or found.unit and found.source or found.unit == "epochs"
    for phrase in (found.unit, found.meaning, found.source):
        assert phrase == phrase.strip() and "\n" not in phrase and "|" not in phrase and not phrase.endswith(".")


def test_the_model_has_the_fields_of_its_config():
    """Excludes the fields that the tokenizer, the stage, sampling and the section `lora` set."""
    fields = {field.name for field in dataclasses.fields(TransformerConfig)}
    others = {"vocab_size", "dropout", "decoding_dtype", "lora_alpha", "lora_dropout"}
    assert declared.SECTIONS["model"].keys.keys() == fields - others


@pytest.mark.parametrize("name", declared.OPTIONAL)
def test_every_optional_section_is_used_by_a_recipe(name):
    recipes = [importlib.import_module(f"configs.{file}") for file in RECIPES]
    assert any(name in recipe.get_config() for recipe in recipes)


@pytest.mark.parametrize(("old", "new"), declared.RENAMED.items())
def test_a_new_name_is_declared_and_an_old_one_is_not(old, new):
    assert new in KEYS and old not in KEYS


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("pretrain.stepps", "pretrain.steps"),
        ("ppo.kl_coeficient", "ppo.kl_coefficient"),
        ("sft.kl_coefficient", "ppo.kl_coefficient"),
        ("rewards.dropout", "reward.dropout"),
        ("gaurds.max_kl", "guards.max_kl"),
        ("invariant", "invariants"),
        ("dpo.betta", "dpo.beta"),
    ],
)
def test_the_nearest_key_is_named(key, near):
    assert declared.unknown(key).endswith(f"; did you mean {near}?")


def test_without_a_near_key_those_of_the_section_are_named():
    expected = "tokenizer.zzz: expected one of path, vocab_size, character_coverage, max_documents, found no such key"
    assert declared.unknown("tokenizer.zzz") == expected
    assert declared.unknown("zzz").startswith("zzz: expected one of seed, invariants, guards, data, ")


@pytest.mark.parametrize(("old", "new"), declared.RENAMED.items())
def test_an_old_name_in_a_file_of_an_earlier_version_is_rejected(old, new):
    before = declared.paper().to_dict()
    declared.check_names(before, "FILE")
    section, _, name = old.rpartition(".")
    declared.check_names(before[section], "FILE", f"{section}.")
    before[section][name] = before[section].pop(new.rpartition(".")[2])
    for values, prefix in ((before, ""), (before[section], f"{section}.")):
        with pytest.raises(ConfigError, match=f"^FILE: {old}: expected {new}, its new name, found the old one; "):
            declared.check_names(values, "FILE", prefix)


@pytest.mark.parametrize("values", [{}, {"model": None}, {"model": "factors"}])
def test_other_files_have_no_old_names(values):
    declared.check_names(values, "FILE")


def test_defaults_are_a_section_that_passes():
    config = declared.paper()
    for name, section in declared.OPTIONAL.items():
        assert isinstance(section, Section)
        config[name] = declared.defaults(section)
        check.section(config, name, section)
    check.keys(config)


def test_a_long_unknown_key_is_shortened():
    assert declared.unknown("ppo." + "9" * 5000).startswith("ppo." + "9" * 76 + ": expected one of ")
