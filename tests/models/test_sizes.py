"""The table of GPT-3's sizes is consistent, and the counts are those of real trees."""

import math

import jax
import pytest

from instructjax.errors import ConfigError
from instructjax.models.config import TransformerConfig
from instructjax.models.sizes import SIZES, count_parameters, gpt3_config
from instructjax.models.transformer import LanguageModel, ScalarModel, abstract_params


def tree_size(model):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(model)))


@pytest.mark.parametrize("size", SIZES)
def test_heads_fill_the_width_and_count_is_the_nominal_one(size):
    config = gpt3_config(size)
    assert config.num_heads * config.d_head == config.d_model
    assert config.d_ff == 4 * config.d_model
    assert count_parameters(config) == pytest.approx(SIZES[size].parameters, rel=0.025)


@pytest.mark.parametrize("size", SIZES)
def test_count_equals_the_real_tree(size):
    config = gpt3_config(size)
    assert count_parameters(config) == tree_size(LanguageModel(config))


def test_the_count_is_right_if_all_widths_differ():
    config = TransformerConfig(
        vocab_size=11, num_layers=2, d_model=6, num_heads=3, d_head=5, d_ff=7, max_length=13, local_window=2
    )
    assert count_parameters(config) == tree_size(LanguageModel(config))
    assert count_parameters(config) + config.d_model + 1 == tree_size(ScalarModel(config))


def test_larger_models_have_larger_batches_and_smaller_rates():
    rows = list(SIZES.values())
    assert [row.parameters for row in rows] == sorted(row.parameters for row in rows)
    assert [row.batch_tokens for row in rows] == sorted(row.batch_tokens for row in rows)
    rates = [row.learning_rate for row in rows]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == len(rates)


def test_changes_reach_the_config():
    config = gpt3_config("xl", dtype="bfloat16", local_window=128, vocab_size=512)
    assert (config.dtype, config.local_window, config.vocab_size, config.num_layers) == ("bfloat16", 128, 512, 24)


def test_unknown_size_and_unknown_field():
    with pytest.raises(ConfigError, match=r"size: expected one of small, .*175b, found '6b'"):
        gpt3_config("6b")
    with pytest.raises(ConfigError, match=r"n_heads: expected one of activation, biases, .*found 'n_heads'"):
        gpt3_config("xl", n_heads=3)
