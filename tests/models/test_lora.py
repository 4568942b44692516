"""Adapters: which kernels have them, what they compute, and what learns."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instructjax.batch import LMBatch, PromptBatch
from instructjax.errors import ConfigError
from instructjax.models import lora
from instructjax.models.lora import LoraConfig, WithBase
from instructjax.models.transformer import LanguageModel, ScalarModel, abstract_params, graft_trunk
from instructjax.rollout import sampling
from instructjax.training import objectives, optimizer
from tests import decoders, fakes

LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0, matrices=("*",))
CONFIG = dataclasses.replace(fakes.DECODER, lora_alpha=LORA.alpha)
ROWS = fakes.rows_of([[1] * 9, [1] * 5 + [2] * 3 + [0]])


def random_adapters(config=CONFIG, settings=LORA, seed=0):
    """Returns adapters whose B is not 0."""
    found = lora.init(jax.random.key(seed), settings, config)
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(seed + 1), x.shape), found)


@functools.cache
def base(config=CONFIG):
    return fakes.params(LanguageModel(config))


def logits(params, config=CONFIG):
    return fakes.logits_of(config, params, *ROWS)


@pytest.mark.parametrize("name", decoders.CHOICES)
def test_adapters_have_the_sides_of_their_kernels(name):
    config = decoders.CHOICES[name]
    rank = LoraConfig(2, 1.0, 0.0, ("*",))
    shapes = abstract_params(LanguageModel(config))
    adapters = jax.eval_shape(lambda: lora.init(jax.random.key(0), rank, config))
    blocks, kernels = shapes["trunk"]["blocks"], 0
    for name, (inputs, outputs) in lora.kernels(config).items():
        group, matrix = name.split("/")
        here = adapters["trunk"]["blocks"][group][matrix]
        assert blocks[group][matrix]["kernel"].shape == (config.num_layers, inputs, outputs)
        assert (here["lora_a"].shape[1:], here["lora_b"].shape[1:]) == ((inputs, 2), (2, outputs))
        kernels += 1
    named = [path for path, _ in jax.tree_util.tree_leaves_with_path(blocks) if path[-1].key == "kernel"]
    assert kernels == len(named)
    assert lora.count_parameters(rank, config) == sum(leaf.size for leaf in jax.tree.leaves(adapters))


def test_fresh_adapters_give_the_base_bit_for_bit():
    fresh = lora.attach(base(), lora.init(jax.random.key(0), LORA, CONFIG))
    np.testing.assert_array_equal(logits(fresh), logits(base()))
    a = fresh["trunk"]["blocks"]["attention"]["query"]["lora_a"]
    assert abs(float(a.std()) * CONFIG.d_model**0.5 - 1) < 0.2


def test_merged_weights_compute_what_adapters_compute():
    whole = lora.attach(base(), random_adapters())
    merged = lora.merge(whole, LORA.alpha)
    assert jax.tree.structure(merged) == jax.tree.structure(base())
    expected = logits(merged)
    np.testing.assert_allclose(logits(whole), expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected - logits(base())).max() > 0.1
    kernel = whole["trunk"]["blocks"]["attention"]["out"]
    product = np.einsum("lir,lro->lio", *(np.asarray(kernel[name], np.float64) for name in ("lora_a", "lora_b")))
    found = merged["trunk"]["blocks"]["attention"]["out"]["kernel"]
    np.testing.assert_allclose(found, kernel["kernel"] + 8 / 4 * product, rtol=1e-5, atol=1e-6)


def test_split_undoes_attach_and_copies_nothing():
    adapters = random_adapters()
    trunk, learned = lora.split(lora.attach(base(), adapters))
    for before, after in ((base(), trunk), (adapters, learned)):
        assert jax.tree.structure(before) == jax.tree.structure(after)
        assert all(a is b for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))
    assert lora.has_adapters(adapters) and not lora.has_adapters(trunk)
    scalar = fakes.params(ScalarModel(CONFIG))
    assert lora.split(scalar)[1].keys() == {"head"}
    grafted = graft_trunk(scalar, lora.attach(base(), adapters))
    assert lora.split(grafted)[1].keys() == {"head", "trunk"}


def loss(model, params):
    return jnp.sum(jnp.square(model.apply({"params": params}, *ROWS)[0]))


def test_at_full_rank_with_a_the_identity_b_learns_what_its_kernel_would():
    """W + (alpha / r) A B with A = I, r = in and alpha = r is W + B: the same function of B as of W."""
    width = CONFIG.d_model
    full = LoraConfig(width, float(width), 0.0, ("feed_forward/in",))
    config = dataclasses.replace(CONFIG, lora_alpha=full.alpha)
    model, adam = LanguageModel(config), optax.adam(1e-2)
    adapters = lora.init(jax.random.key(0), full, config)
    place = adapters["trunk"]["blocks"]["feed_forward"]["in"]
    place["lora_a"] = jnp.broadcast_to(jnp.eye(width), place["lora_a"].shape)

    def with_b(b):
        pair = {"lora_a": place["lora_a"], "lora_b": b}
        return lora.attach(base(), {"trunk": {"blocks": {"feed_forward": {"in": pair}}}})

    def with_kernel(kernel):
        return lora.attach(base(), {"trunk": {"blocks": {"feed_forward": {"in": {"kernel": kernel}}}}})

    def trained(whole, x):
        @jax.jit
        def step(x, state):
            gradient = jax.grad(lambda x: loss(model, whole(x)))(x)
            updates, state = adam.update(gradient, state)
            return optax.apply_updates(x, updates), state

        state = adam.init(x)
        for _ in range(3):
            x, state = step(x, state)
        return x

    kernel = base()["trunk"]["blocks"]["feed_forward"]["in"]["kernel"]
    found = kernel + trained(with_b, place["lora_b"])
    expected = trained(with_kernel, kernel)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(expected - kernel).max() > 0.02


def test_no_product_of_a_gradient_has_the_shape_of_a_kernel():
    model, shapes = LanguageModel(CONFIG), {f"{a},{b}" for a, b in lora.kernels(CONFIG).values()}

    def products(function, *arguments):
        compiled = jax.jit(jax.grad(function)).lower(*arguments).compile().as_text()
        return set(re.findall(r"= f32\[([\d,]+)\]\S* dot\(", compiled))

    found = products(lambda adapters, base: loss(WithBase(model, base), adapters), random_adapters(), base())
    assert not found & shapes and f"{CONFIG.d_ff},{LORA.rank}" in found
    assert products(lambda params: loss(model, params), base()) >= shapes


@pytest.mark.slow
def test_with_its_base_a_model_takes_adapters_as_its_weights():
    config = dataclasses.replace(CONFIG, tied=False, matmul_dtype="bfloat16")
    adapters, params, model = random_adapters(config), base(config), LanguageModel(config)
    batch = LMBatch(*ROWS, (ROWS[1] > 0).astype(jnp.float32))

    def gradient(with_base):
        def total(adapters):
            whole = adapters if with_base else lora.attach(params, adapters)
            bound = WithBase(model, params) if with_base else model
            return objectives.language_model_loss(bound)(whole, batch, None)[0][0]

        return jax.jit(jax.grad(total))(adapters)

    jax.tree.map(np.testing.assert_array_equal, gradient(True), gradient(False))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient(True)))


@pytest.mark.slow
def test_merged_weights_decode():
    config = dataclasses.replace(CONFIG, matmul_dtype="bfloat16")
    whole, model = lora.attach(base(), random_adapters()), LanguageModel(config)
    decoding = WithBase(model, base()).decoding_params(random_adapters())
    assert jax.tree.structure(decoding) == jax.tree.structure(model.decoding_params(lora.merge(whole, LORA.alpha)))
    prompts = PromptBatch(ROWS[0][:, :4], jnp.ones((2, 4), jnp.int32))
    keys = sampling.row_keys(jax.random.key(0), 2)
    ends = {"max_response": 5, "eos_id": -1, "pad_id": 0}

    def sample(model, params):
        return sampling.sample(model, params, prompts, keys, sampling.greedy, **ends)[0].tokens

    expected = sample(model, lora.merge(whole, LORA.alpha))
    for found in (sample(WithBase(model, base()), random_adapters()), sample(model, whole)):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_dropout_is_on_the_input_of_adapters_alone():
    config = dataclasses.replace(CONFIG, lora_dropout=0.5)
    run = fakes.compiled(LanguageModel(config), deterministic=False)
    fresh = lora.attach(base(), lora.init(jax.random.key(0), LORA, CONFIG))
    keys = jax.random.key(1), jax.random.key(2)
    np.testing.assert_array_equal(run(fresh, *ROWS, key=keys[0])[0], logits(base()))
    whole = lora.attach(base(), random_adapters())
    first, second, again = (run(whole, *ROWS, key=key)[0] for key in (*keys, keys[0]))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 1e-3


def test_adapters_decay_as_matrices_do():
    assert all(jax.tree.leaves(optimizer.decayed(random_adapters())))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"matrices": ("attention/q*", "mlp/*")}, "lora.matrices: expected patterns of attention/query, .*'mlp/\\*'"),
        ({"matrices": ()}, "lora.matrices: expected patterns of attention/query, .*found ''"),
        ({"rank": 13}, "lora.rank: expected at most 12, the smaller side of attention/query, found 13"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        lora.init(jax.random.key(0), dataclasses.replace(LORA, **changes), CONFIG)
