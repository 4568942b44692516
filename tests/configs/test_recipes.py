"""Every recipe can be read, is locked, and is consistent; the base is the paper's."""

import importlib
import json

import pytest

from instructjax.models import huggingface, sizes
from instructjax.models.config import TransformerConfig
from instructjax.recipe import check

RECIPES = [
    ("instructgpt", "1p3b"),
    ("instructgpt", "6b"),
    ("instructgpt", "175b"),
    ("sandbox", ""),
    ("sandbox", "smoke"),
    ("sandbox", "rounds"),
    ("e2e", ""),
    ("e2e", "smoke"),
    ("own", ""),
    ("own", "tiny"),
    ("gpt2", "124m"),
    ("gpt2", "1p5b"),
    ("gpt2", "tiny"),
    ("gsm8k", "ppo"),
    ("gsm8k", "rloo"),
    ("gsm8k", "grpo"),
    ("arithmetic", ""),
    ("arithmetic", "rloo"),
    ("arithmetic", "grpo"),
    ("smollm2", ""),
    ("smollm2", "smoke"),
]
SOURCES = {"files", "sandbox", "e2e", "gsm8k", "arithmetic"}


def recipe(name, variant):
    return importlib.import_module(f"configs.{name}").get_config(variant)


def keys(config, prefix=""):
    """Returns the names of all keys except those of the source of records."""
    for name, value in config.items():
        if hasattr(value, "items") and name not in SOURCES:
            yield from keys(value, f"{prefix}{name}.")
        elif name not in SOURCES:
            yield prefix + name


@pytest.mark.parametrize(("name", "variant"), RECIPES)
class TestEveryRecipe:
    def test_it_is_locked_and_plain_data(self, name, variant):
        config = recipe(name, variant)
        assert config.is_locked
        with pytest.raises(AttributeError):
            config.ppo.learnin_rate = 1.0
        json.dumps(config.to_dict())

    def test_it_has_the_keys_of_the_base_and_one_source(self, name, variant):
        config = recipe(name, variant)
        assert set(keys(config)) == set(keys(recipe("instructgpt", "1p3b")))
        assert len(SOURCES & set(config)) == 1

    def test_its_values_fit_together(self, name, variant):
        config = recipe(name, variant)
        shape = TransformerConfig(vocab_size=config.tokenizer.vocab_size, **config.model.to_dict())
        needed = (config.data.max_prompt + config.data.max_response, config.pretrain.length, config.ppo.ptx_length)
        assert max(needed) <= shape.max_length
        check.intervals(config.log)
        check.intervals(config.ppo_log)
        for stage in ("pretrain", "sft", "reward", "ppo_init"):
            assert config[stage].batch_size % config[stage].microbatches == 0
        ppo = config.ppo
        assert ppo.batch_size % ppo.minibatch_size == 0
        assert ppo.minibatch_size * ppo.ptx_examples_per_episode % ppo.ptx_microbatches == 0
        assert 4 <= config.comparisons.min_answers <= config.comparisons.max_answers <= 9


@pytest.mark.parametrize(
    "name", ["instructgpt", "sandbox", "e2e", "own", "dpo", "gpt2", "gsm8k", "arithmetic", "smollm2"]
)
def test_an_unknown_variant_is_named(name):
    with pytest.raises(ValueError, match=r"^configs/\w+.py: expected .*, found 'smok'$"):
        recipe(name, "smok")


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [("124m", 124_439_808), ("355m", 354_823_168), ("774m", 774_030_080), ("1p5b", 1_557_611_200)],
)
def test_the_sizes_of_gpt2_have_the_parameters_of_the_released_weights(variant, parameters):
    shape = TransformerConfig(vocab_size=50257, **recipe("gpt2", variant).model.to_dict())
    assert sizes.count_parameters(shape) == parameters
    huggingface.check_fit(huggingface.config_of(huggingface.describe(shape, eos_id=50256, pad_id=187)), shape, "FOLDER")


def test_the_base_is_the_papers():
    """Checks appendix C.4 and sections 3.5 and C.1 to C.3, in the order of the config."""
    config = recipe("instructgpt", "1p3b")
    assert (config.optimizer.beta1, config.optimizer.beta2) == (0.9, 0.95)
    assert (config.sft.epochs, config.sft.dropout, config.sft.final_fraction) == (16, 0.2, 0.1)
    assert (config.reward.epochs, config.reward.batch_size) == (1, 64)
    assert (config.ppo_init.epochs, config.ppo_init.text_share) == (2, 0.1)
    ppo = config.ppo
    assert ppo.iterations * ppo.batch_size == 256_000
    assert (ppo.batch_size, ppo.minibatch_size, ppo.epochs, ppo.temperature) == (512, 64, 1, 1.0)
    assert (ppo.kl_coefficient, ppo.clip_ratio, ppo.discount, ppo.warmup_iterations) == (0.02, 0.2, 1.0, 10)
    assert (ppo.ema_decay, ppo.ptx_coefficient, ppo.ptx_examples_per_episode) == (0.992, 27.8, 8)
