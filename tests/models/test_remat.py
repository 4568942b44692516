"""What is saved for the backward pass, by `model.remat`. test_transformer.py tests that gradients do not change."""

import dataclasses
import math

import jax
import pytest

from instructjax.models.config import TransformerConfig
from instructjax.models.transformer import LanguageModel
from tests import fakes

B, T, D, HIDDEN = 2, 24, 64, 256
CONFIG = TransformerConfig(vocab_size=16, num_layers=3, d_model=D, num_heads=4, d_head=16, d_ff=HIDDEN, max_length=T)


def saved(remat):
    """Returns how many numbers per layer and token the backward pass of the blocks gets from the forward pass."""
    model = LanguageModel(dataclasses.replace(CONFIG, remat=remat))
    rows = fakes.rows_of([[1] * T] * B)
    params = jax.eval_shape(model.init, jax.random.key(0), *rows)["params"]
    backward = jax.eval_shape(lambda params: jax.vjp(lambda p: model.apply({"params": p}, *rows)[0], params)[1], params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(backward)]
    # Some results have rows and tokens as one axis. Those of weights have neither.
    of_tokens = [shape for shape in shapes if shape[:2] in ((3, B), (3, B * T))]
    return sum(map(math.prod, of_tokens)) / (3 * B * T)


# The input of each block, and: the output of attention; or query, key, value, the output of the dense layer after
# attention, and the hidden units. The backward pass does not need the output of the last dense layer.
EXPECTED = {"all": D, "attention": D + D, "dense": D + 4 * D + HIDDEN, "offload": D + 4 * D + HIDDEN}


@pytest.mark.parametrize("remat", EXPECTED)
def test_a_choice_saves_what_it_names_and_the_input_of_each_block(remat):
    assert saved(remat) == EXPECTED[remat]


def test_without_rematerialization_everything_is_saved():
    assert saved("none") > 2 * EXPECTED["dense"]
