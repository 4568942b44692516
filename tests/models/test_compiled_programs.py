"""What compiled programs send between the devices of a mesh: virtual CPU devices, and TPUs that are not present."""

import dataclasses
import importlib.util
import math
import os
import re

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from instructjax import losses
from instructjax.batch import PromptBatch
from instructjax.models import unembedding
from instructjax.models.config import TransformerConfig
from instructjax.models.transformer import LanguageModel
from instructjax.planning import chips
from instructjax.rollout import sampling
from instructjax.training import parallel
from tests.collectives import collectives

# No kernel has as few elements as an activation of a decoded token.
CONFIG = TransformerConfig(vocab_size=96, num_layers=2, d_model=64, num_heads=4, d_head=16, d_ff=128, max_length=48)
KERNEL = 64 * 64
MESH = {"mode": "jit", "data": 1, "fsdp": 4, "tensor": 2, "shard_optimizer_state": False}


def on_mesh(**keys):
    return parallel.on_mesh(ml_collections.ConfigDict(MESH | keys))


def weights(model):
    """Returns the shapes of a model's weights, with their shardings on the mesh of the context."""
    row = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return parallel.abstract(jax.eval_shape(lambda *row: model.init(jax.random.key(0), *row), row, row, row)["params"])


def array(shape, dtype=jnp.int32):
    """Returns the shape of an array [B, ...], sharded by rows on the mesh of the context."""
    where = jax.sharding.NamedSharding(jax.sharding.get_mesh(), jax.sharding.PartitionSpec(("data", "fsdp")))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def sampler(model):
    """Returns a function of the weights and 16 prompts that samples 8 tokens for each."""

    def sample(params, prompts):
        given = sampling.row_keys(jax.random.key(0), 16), sampling.categorical()
        return sampling.sample(model, params, prompts, *given, max_response=8, eos_id=1, pad_id=0)

    return sample


@pytest.mark.parametrize("tied", [True, False])
def test_decoding_gathers_weights_before_its_loops_and_rounded(tied):
    # In a scan over layers, so that XLA cannot move the gathers out of the loop by itself.
    dtype = "float32" if tied else "float16"
    model = LanguageModel(dataclasses.replace(CONFIG, tied=tied, dtype=dtype, cache_by_layer=False))
    with on_mesh():
        prompts = PromptBatch(array((16, 8)), array((16, 8)))
        found = collectives(jax.jit(sampler(model)).lower(weights(model), prompts).compile().as_text())
    gathers = [one for one in found if one.operation == "all-gather"]
    gathered = [one for one in gathers if one.loops == 0 and one.elements >= KERNEL]
    assert len(gathered) >= 6
    assert {one.dtype for one in gathered} == {"f32" if tied else "f16"}
    assert max((one.elements for one in gathers if one.loops), default=0) < KERNEL


@pytest.mark.parametrize("vocabulary", [96, 97])
def test_the_devices_of_tensor_share_the_logits_of_a_chunk(vocabulary):
    """A vocabulary that does not divide is shared by position. The unembedding is gathered before the loop."""
    rows, length, chunk = 8, 64, 32
    model = LanguageModel(dataclasses.replace(CONFIG, vocab_size=vocabulary, logits_chunk=chunk, dtype="float16"))

    def read(params, hidden, tokens):
        return unembedding.read_logits(model, params, hidden, tokens, tokens, losses.log_probs)

    with on_mesh():
        given = weights(model), array((rows, length, CONFIG.d_model), jnp.float16), array((rows, length))
        text = jax.jit(read).lower(*given).compile().as_text()
    sizes = [math.prod(int(n) for n in dims.split(",")) for dims in re.findall(r"= f32\[([\d,]+)\]\S* dot\(", text)]
    assert sizes == [chunk * vocabulary // 2]
    gathers = [one for one in collectives(text) if one.operation == "all-gather"]
    gathered = [one for one in gathers if one.elements >= vocabulary * CONFIG.d_model // 2]
    assert [(one.dtype, one.loops) for one in gathered] == [("f16", 0)]


@pytest.mark.absent_hardware
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.skipif(os.environ.get("JAX_PLATFORMS") != "cpu", reason="compiles for absent chips with JAX_PLATFORMS=cpu")
def test_decoding_on_a_tpu_gathers_no_weights_in_its_loops():
    model = LanguageModel(dataclasses.replace(CONFIG, dtype="bfloat16", cache_by_layer=False))
    mesh = parallel.make_mesh((1, 2, 2), chips.devices(chips.parse("v5e:2x2")))
    with jax.set_mesh(mesh):
        prompts = PromptBatch(array((16, 8)), array((16, 8)))
        text = jax.jit(sampler(model)).trace(weights(model), prompts).lower().compile().as_text()
    gathers = [one for one in collectives(text) if one.operation == "all-gather"]
    assert {one.dtype for one in gathers if one.loops == 0 and one.elements >= KERNEL} == {"bf16"}
    assert max((one.elements for one in gathers if one.loops), default=0) < KERNEL
