"""Invalid recipes are rejected before any work, in whichever stage they would fail."""

import importlib
import math

import ml_collections
import pytest

from configs import dpo, e2e, gpt2, instructgpt, sandbox
from instructjax.errors import ConfigError
from instructjax.recipe import check, declared
from instructjax.recipe.key import POSITIVE, Key, section
from instructjax.stages.run import Run
from tests.recipes import changed, recipe


@pytest.mark.parametrize(
    ("name", "variant"), [("sandbox", ""), ("sandbox", "smoke"), ("e2e", ""), ("e2e", "smoke"), ("gpt2", "tiny")]
)
def test_recipes_that_name_their_records_pass(name, variant):
    check.recipe(importlib.import_module(f"configs.{name}").get_config(variant))


@pytest.mark.parametrize(
    ("recipe", "variant"), [*((instructgpt, v) for v in instructgpt.VARIANTS), *((gpt2, v) for v in gpt2.SIZES)]
)
def test_the_base_recipe_needs_a_reward_model_of_its_size(recipe, variant):
    config = recipe.get_config(variant)
    if config.reward.size:  # 6B, for a policy of 1.3B: from another run
        with pytest.raises(ConfigError, match="^reward.init_from: expected the checkpoints of a policy of "):
            check.recipe(config)
    check.recipe(changed(config, ppo__reward_from="6b/reward/checkpoints"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", -1, "expected an integer from 0 to "),
        ("invariants", "ignore", "expected one of stop, warn, found 'ignore'"),
        ("guards__action", "ignore", "expected one of stop, warn, found 'ignore'"),
        ("guards__max_skipped", 0, "expected an integer, at least 1, found 0"),
        ("guards__max_kl", -1.0, "expected at least 0, or infinity, found -1.0"),
        ("guards__min_response_tokens", math.nan, "expected at least 0, or infinity, found nan"),
        ("pretrain__microbatches", 0, "expected an integer, at least 1, found 0"),
        ("reward__batch_size", 30, "expected a multiple of 8 "),
        ("ppo__batch_size", 100, "expected a multiple of ppo.minibatch_size (16), found 100"),
        ("ppo__minibatch_size", 2, "expected a multiple of 8 "),
        ("ppo__temperature", 0.0, "expected more than 0, found 0.0"),
        ("ppo_init__text_share", 1.0, "expected from 0 to below 1, found 1.0"),
        ("ppo_log__save_every", 0, "expected an integer, at least 1, found 0"),
        ("ppo_log__every", 31, "expected an integer from 1 to 30, found 31"),
        ("log__keep", 0, "expected an integer, at least 1, found 0"),
        ("comparisons__max_answers", 33, "expected an integer from 2 to 32, found 33"),
        ("comparisons__min_answers", 1, "expected an integer from 2 to 32, found 1"),
        ("ppo__samples_per_prompt", 3, "expected a divisor of ppo.batch_size (64), found 3"),
        ("sandbox__raters", 1, "expected 2 to the 20 labelers of the smaller group, found 1"),
        ("sandbox__raters", 21, "expected 2 to the 20 labelers of the smaller group, found 21"),
        ("evaluate__judgements", 21, "expected 1 to the 20 labelers of the smaller group, found 21"),
        ("sft__dropout", 1.0, "expected from 0 to below 1, found 1.0"),
        ("model__d_ff", 0, "expected an integer, at least 1, found 0"),
        ("model__max_length", 40, "expected at least data.max_prompt + data.max_response = 50 tokens, found 40"),
        ("ppo__ptx_length", 4096, "expected at most model.max_length (128), found 4096"),
        ("reward__size", "7b", 'expected "" or one of small, medium'),
        ("ppo__frozen_dtype", "bfloat16", "expected one of float32, float64, as networks compute in float32"),
        ("ppo__frozen_dtype", "int8", "expected one of float32, float64, as networks compute in float32"),
        ("parallel__mode", "xmap", "expected one of jit, pmap, found 'xmap'"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(tmp_path, key, value, message):
    config = sandbox.get_config("smoke")
    check.recipe(config)
    with pytest.raises(ConfigError) as error:
        _ = Run(changed(config, **{key: value}), tmp_path / "run").layout
    assert str(error.value).startswith(f"{key.replace('__', '.')}: {message}")
    assert not (tmp_path / "run").exists()


def test_fewest_answers_are_at_most_the_most():
    with pytest.raises(ConfigError, match=r"^comparisons.min_answers: expected at most .*max_answers \(3\), found 4$"):
        check.recipe(changed(sandbox.get_config(), comparisons__max_answers=3))


def test_text_is_not_needed_in_every_batch():
    check.recipe(changed(e2e.get_config(), ppo_init__text_share=0.0))


@pytest.mark.parametrize("name", ["text", "demonstrations", "prompts", "rankings"])
def test_the_records_of_all_stages_are_required_at_the_start(tmp_path, name):
    with pytest.raises(ConfigError, match=f"^files.{name}: expected a file of "):
        run = Run(changed(recipe(tmp_path), **{f"files__{name}": ""}), tmp_path / "run")
        run.require("pretrain", "sft", "reward", "ppo_init", "ppo")


def leaves(config, prefix=""):
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


EVERY = {
    key: (recipe, value)
    for recipe in (instructgpt.get_config(), dpo.get_config(), e2e.get_config())
    for key, value in leaves(recipe)
}


@pytest.mark.parametrize("key", EVERY)
def test_every_key_has_a_range(key):
    config, value = EVERY[key]
    number, no_number = [float("nan"), -float("inf"), -2], [-3]
    for other in [object(), [[]], *(number if type(value) in (int, float) else no_number)]:
        with pytest.raises(ConfigError) as error:
            config_with = config.copy_and_resolve_references().unlock()
            section, _, name = key.rpartition(".")
            with config_with.ignore_type():
                (config_with[section] if section else config_with)[name] = other
            check.keys(config_with)
        assert str(error.value).startswith(f"{key}: expected ")


@pytest.mark.parametrize("key", EVERY)
def test_every_key_is_required(key):
    config = EVERY[key][0].copy_and_resolve_references().unlock()
    section, _, name = key.rpartition(".")
    del (config[section] if section else config)[name]
    with pytest.raises(ConfigError, match=f"^{key}: expected .*, found no such key in the recipe$"):
        check.keys(config)


@pytest.mark.parametrize("key", [key for key in EVERY if "." in key])
def test_undeclared_keys_are_rejected(key):
    """This holds even next to the right key."""
    config, section = EVERY[key][0].copy_and_resolve_references().unlock(), key.rpartition(".")[0]
    config[section][f"{key.rpartition('.')[2]}_"] = EVERY[key][1]
    with pytest.raises(ConfigError, match=f"^{key}_: expected a key .*, found no such key; did you mean {key}\\?$"):
        check.keys(config)


@pytest.mark.parametrize(("old", "new"), declared.RENAMED.items())
@pytest.mark.parametrize("is_there", [True, False])
def test_the_error_for_an_old_name_gives_the_new_one(old, new, is_there):
    config = sandbox.get_config().unlock()
    section, _, name = new.rpartition(".")
    config[section][old.rpartition(".")[2]] = config[section][name]
    if not is_there:
        del config[section][name]
    with pytest.raises(ConfigError, match=f"^{old}: expected {new}, its new name, found the old one$"):
        check.keys(config)


def test_a_section_that_is_declared_elsewhere_is_checked_by_its_stage():
    config = sandbox.get_config().unlock()
    config.mine = ml_collections.ConfigDict({"epochs": -1})
    check.keys(config)
    mine = section("mine", epochs=Key(1, POSITIVE, "epochs", ""))
    with pytest.raises(ConfigError, match="^mine.epochs: expected more than 0, found -1$"):
        check.section(config, "mine", mine)
    config.mine = declared.defaults(mine)
    check.section(config, "mine", mine)


def test_a_key_outside_of_sections_is_not_a_section():
    config = sandbox.get_config().unlock()
    config.sed = 3
    with pytest.raises(ConfigError, match=r"^sed: expected .*; did you mean seed\?$"):
        check.keys(config)


def test_a_guest_of_this_package_is_checked():
    with pytest.raises(ConfigError, match="^dpo.beta: expected at least 0, found -1.0$"):
        check.recipe(changed(dpo.get_config(), dpo__beta=-1.0))
