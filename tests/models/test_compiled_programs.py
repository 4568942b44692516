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

from instructjax import accelerators, losses
from instructjax.batch import LMBatch, PromptBatch, RankingBatch
from instructjax.models import attention, block, unembedding
from instructjax.models.config import TransformerConfig
from instructjax.models.transformer import LanguageModel, ScalarModel, abstract_params
from instructjax.planning import chips
from instructjax.planning.communication import collectives
from instructjax.rollout import refilling, sampling
from instructjax.training import objectives, parallel
from instructjax.training.step import summed_gradient

# No kernel has as few elements as an activation of a decoded token.
CONFIG = TransformerConfig(vocab_size=96, num_layers=2, d_model=64, num_heads=4, d_head=16, d_ff=128, max_length=48)
KERNEL = 64 * 64
MESH = {"mode": "jit", "data": 1, "fsdp": 4, "tensor": 2, "shard_optimizer_state": False}


def on_mesh(**keys):
    return parallel.on_mesh(ml_collections.ConfigDict(MESH | keys))


def weights(model):
    """Returns the shapes of a model's weights, with their shardings on the mesh of the context."""
    return parallel.abstract(abstract_params(model))


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


@pytest.mark.parametrize(
    "tied, dtype, decoding_dtype, kernels, embedding",
    [
        (True, "float32", "", "f32", "f32"),
        (False, "float16", "", "f16", "f16"),
        (False, "float16", "int8", "s8", "f16"),
    ],
)
def test_decoding_gathers_weights_before_its_loops_and_rounded(tied, dtype, decoding_dtype, kernels, embedding):
    # In a scan over layers, so that XLA cannot move the gathers out of the loop by itself.
    config = dataclasses.replace(CONFIG, tied=tied, dtype=dtype, decoding_dtype=decoding_dtype, cache_by_layer=False)
    model = LanguageModel(config)
    with on_mesh():
        prompts = PromptBatch(array((16, 8)), array((16, 8)))
        found = collectives(jax.jit(sampler(model)).lower(weights(model), prompts).compile().as_text())
    gathers = [one for one in found if one.operation == "all-gather"]
    gathered = [one for one in gathers if one.loops == 0 and one.elements >= KERNEL]
    assert sum(one.dtype == kernels for one in gathered) >= 6
    assert {one.dtype for one in gathered} <= {kernels, embedding}
    assert max((one.elements for one in gathers if one.loops), default=0) < KERNEL


def test_refilling_stays_on_each_device():
    model = LanguageModel(dataclasses.replace(CONFIG, cache_by_layer=False))

    def sample(params, prompts):
        given = sampling.row_keys(jax.random.key(0), 64), sampling.categorical()
        sizes = {"rows": 32, "refill": 2, "max_response": 8}
        return refilling.sample(model, params, prompts, *given, **sizes, eos_id=1, pad_id=0)

    with on_mesh(fsdp=8, tensor=1):
        prompts = PromptBatch(array((64, 8)), array((64, 8)))
        found = collectives(jax.jit(sample).lower(weights(model), prompts).compile().as_text())
    # Only whether all rows are done.
    assert {(one.operation, one.dtype, one.elements) for one in found if one.loops} == {("all-reduce", "pred", 1)}


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


def test_gradients_of_the_layers_that_read_an_input_are_rounded_once_summed():
    """So that their sum is reduced over "tensor", not each of them. In bfloat16, 1 + 2^-8 is rounded to 1."""
    config = dataclasses.replace(CONFIG, dtype="bfloat16")

    def read(x):
        x = block.gather_length(config, x)
        return sum((x * jnp.asarray(weight, jnp.bfloat16)).sum() for weight in (2**-8, 2**-8, 1))

    x = jnp.ones((8, 2, 4), jnp.bfloat16)
    assert set(jax.jit(jax.grad(read))(x).ravel().tolist()) == {1.0}
    with on_mesh():
        assert set(jax.jit(jax.grad(read))(x).ravel().tolist()) == {1 + 2**-7}


DATA = {"data": 8, "fsdp": 1, "tensor": 1}


def reductions(mesh, dropout=0.0):
    """Returns the loops around each reduction of weights' gradients on a mesh of data: 4 microbatches, 2 layers."""
    model = LanguageModel(dataclasses.replace(CONFIG, remat="all", dropout=dropout))
    key = jax.random.key(0) if dropout else None

    def gradient(params, rows):
        loss = objectives.language_model_loss(model)
        return summed_gradient(loss, params, rows, key, microbatches=4)

    with mesh:
        rows, weight = array((32, 16)), array((32, 16), jnp.float32)
        batch = LMBatch(rows, rows, rows, weight)
        text = jax.jit(gradient).trace(weights(model), batch).lower().compile().as_text()
    found = [one for one in collectives(text) if one.elements >= KERNEL]
    assert {one.operation for one in found} == {"all-reduce"}
    return [one.loops for one in found]


def test_gradients_of_microbatches_are_reduced_once_per_step():
    assert set(reductions(on_mesh(**DATA))) == {0}


def test_gradients_with_dropout_are_reduced_in_every_microbatch():
    """A check of the check above. Noise is drawn for the global batch, so that it is the same on every mesh."""
    assert {1, 2} <= set(reductions(on_mesh(**DATA), dropout=0.1))


def compiled_for_a_ranking():
    """Returns the program of a reward model's gradient for four TPUs. Every row has one prompt and four answers."""
    length, shape = 512, {"d_model": 512, "num_heads": 4, "d_head": 128, "d_ff": 2048, "max_length": 512}
    model = ScalarModel(dataclasses.replace(CONFIG, **shape, dtype="bfloat16", remat="all"))

    def gradient(params, rows):
        return summed_gradient(objectives.ranking_loss(model), params, rows, None, microbatches=2)

    mesh = parallel.make_mesh((1, 2, 2), chips.devices(chips.parse("v5e:2x2")))
    with jax.set_mesh(mesh):
        rows, ends = array((4, length)), array((4, 1, 4))
        batch = RankingBatch(rows, rows, rows, rows, ends, array((4, 1, 4), jnp.float32), array((4, 1, 4), bool))
        return jax.jit(gradient).trace(weights(model), batch).lower().compile().as_text()


SCORES = re.compile(r"f32\[1,2,\d+,(256|384|512)\]")  # of a row's queries by keys, in two heads


@pytest.mark.absent_hardware
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.skipif(os.environ.get("JAX_PLATFORMS") != "cpu", reason="compiles for absent chips with JAX_PLATFORMS=cpu")
def test_the_reward_model_on_tpus_has_no_scores_and_no_permutes_in_its_layer_loop():
    text = compiled_for_a_ranking()
    found = collectives(text)
    assert {one.operation for one in found if one.loops == 2} <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert "splash" in text
    assert not SCORES.search(text)


@pytest.mark.absent_hardware
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.skipif(os.environ.get("JAX_PLATFORMS") != "cpu", reason="compiles for absent chips with JAX_PLATFORMS=cpu")
def test_without_the_fused_kernel_the_reward_model_has_scores(monkeypatch):
    """The pattern finds the scores if there are some."""
    monkeypatch.setattr(attention, "platform_of_context", lambda: "cpu")
    assert SCORES.search(compiled_for_a_ranking())


@pytest.mark.absent_hardware
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.skipif(os.environ.get("JAX_PLATFORMS") != "cpu", reason="compiles for absent chips with JAX_PLATFORMS=cpu")
def test_decoding_on_a_tpu_gathers_no_weights_in_its_loops():
    model = LanguageModel(dataclasses.replace(CONFIG, dtype="bfloat16", cache_by_layer=False))
    mesh = parallel.make_mesh((1, 2, 2), chips.devices(chips.parse("v5e:2x2")))
    with jax.set_mesh(mesh):
        prompts = PromptBatch(array((16, 4)), array((16, 4)))  # prefill's activations are smaller than a kernel
        text = jax.jit(sampler(model)).trace(weights(model), prompts).lower().compile().as_text()
    gathers = [one for one in collectives(text) if one.operation == "all-gather"]
    assert {one.dtype for one in gathers if one.loops == 0 and one.elements >= KERNEL} == {"bf16"}
    assert max((one.elements for one in gathers if one.loops), default=0) < KERNEL


@pytest.mark.absent_hardware
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.skipif(os.environ.get("JAX_PLATFORMS") != "cpu", reason="compiles for absent chips with JAX_PLATFORMS=cpu")
def test_gradients_of_microbatches_are_reduced_once_on_tpus():
    mesh = parallel.make_mesh((4, 1, 1), chips.devices(chips.parse("v5e:2x2")))
    assert set(reductions(jax.set_mesh(mesh))) == {0}


@pytest.mark.absent_hardware
@pytest.mark.skipif(os.environ.get("JAX_PLATFORMS") != "cpu", reason="compiles for absent chips with JAX_PLATFORMS=cpu")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("v5e:2x2", marks=pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="no libtpu")),
        pytest.param("h100:4", marks=pytest.mark.skipif(not accelerators.has_cuda_plugin(), reason="no CUDA plugin")),
    ],
)
def test_a_layer_scatters_five_sums_over_tensor_and_gathers_six_activations(name):
    """The sums: both sublayers, attention once more in the backward pass, and the gradients of both inputs."""
    rows, length, tensor = 4, 64, 4
    config = dataclasses.replace(CONFIG, dtype="bfloat16", remat="all", max_length=length, logits_chunk=128)
    model = LanguageModel(config)

    def gradient(params, batch):
        return summed_gradient(objectives.language_model_loss(model), params, batch, None)

    with jax.set_mesh(parallel.make_mesh((1, 1, tensor), chips.devices(chips.parse(name)))):
        tokens = array((rows, length))
        batch = LMBatch(tokens, tokens, tokens, array((rows, length), jnp.float32))
        text = jax.jit(gradient).trace(weights(model), batch).lower().compile().as_text()
    numbers, found = rows * length * config.d_model, collectives(text)
    found = [one for one in found if one.loops == 1 and one.elements * tensor >= numbers]
    # The sums of the head are in bfloat16, and its gathers are of a chunk.
    sums = [one for one in found if "reduce" in one.operation and one.dtype == "f32"]
    assert {one.operation for one in sums} == {"reduce-scatter"}
    assert sum(one.bytes for one in sums) == 5 * numbers * 4 / tensor
    gathers = [one for one in found if one.operation == "all-gather" and one.elements == numbers]
    assert sum(one.bytes for one in gathers) == 6 * numbers * 2
