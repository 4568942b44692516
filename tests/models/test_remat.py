"""What is saved for the backward pass, by `model.remat`. test_transformer.py tests that gradients do not change."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from instructjax.models import attention, remat
from instructjax.models.config import TransformerConfig
from instructjax.models.transformer import LanguageModel, abstract_params
from tests import fakes

B, T, D, HIDDEN = 2, 24, 64, 256
CONFIG = TransformerConfig(vocab_size=16, num_layers=3, d_model=D, num_heads=4, d_head=16, d_ff=HIDDEN, max_length=T)


def saved(choice):
    """Returns how many numbers per layer and token the backward pass of the blocks gets from the forward pass."""
    model = LanguageModel(dataclasses.replace(CONFIG, remat=choice))
    rows = fakes.rows_of([[1] * T] * B)
    params = abstract_params(model)
    backward = jax.eval_shape(lambda params: jax.vjp(lambda p: model.apply({"params": p}, *rows)[0], params)[1], params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(backward)]
    # Some results have rows and tokens as one axis. Those of weights have neither.
    of_tokens = [shape for shape in shapes if shape[:2] in ((3, B), (3, B * T))]
    return sum(map(math.prod, of_tokens)) / (3 * B * T)


# The input of each block, and: the output of attention; or query, key, value, the output of the dense layer after
# attention, and the hidden units. The backward pass does not need the output of the last dense layer.
EXPECTED = {"all": D, "attention": D + D, "dense": D + 4 * D + HIDDEN, "offload": D + 4 * D + HIDDEN}


@pytest.mark.parametrize("choice", EXPECTED)
def test_a_choice_saves_what_it_names_and_the_input_of_each_block(choice):
    assert saved(choice) == EXPECTED[choice]


@pytest.mark.parametrize(("choice", "calls"), [("attention", 1), ("none", 1), ("all", 2)])
def test_the_backward_pass_calls_the_forward_kernel_of_cudnn_only_if_nothing_of_it_is_saved(choice, calls, monkeypatch):
    module = (
        "jax._src.cudnn.fused_attention_stablehlo"  # whose checks ask for a GPU; the program is traced, not compiled
    )
    monkeypatch.setattr(f"{module}.check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(f"{module}.check_compute_capability", lambda capability: True)
    monkeypatch.setattr(attention, "fused_kernel", lambda *arrays: "cudnn")
    array = jnp.ones((B, 4, T, 16), jnp.bfloat16)
    visible = attention.Visible(jnp.ones((B, T, T), bool))

    def block(x):
        query, key, value = 2 * x, 3 * x, 4 * x
        return attention.attention(query, key, value, visible).sum()

    gradient = jax.make_jaxpr(jax.grad(jax.checkpoint(block, policy=remat.policy(choice))))(array)
    assert str(gradient).count("dot_product_attention_fwd_wrapper[") == calls
    assert str(gradient).count("dot_product_attention_bwd_wrapper[") == 1


def test_without_rematerialization_everything_is_saved():
    assert saved("none") > 2 * EXPECTED["dense"]
