import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.batch import LMBatch
from instructjax.data import layouts
from instructjax.models import flops, traced_flops
from instructjax.models.cache import init_cache
from instructjax.models.config import TransformerConfig
from instructjax.models.transformer import LanguageModel, ScalarModel, abstract_params
from instructjax.training import objectives
from instructjax.training.step import summed_gradient

SHAPE = TransformerConfig(
    vocab_size=512, num_layers=4, d_model=128, num_heads=4, d_head=32, d_ff=512, max_length=64, remat="all"
)
ROWS, LENGTH = 4, 64


def array(shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype)


def traced(function, *arguments):
    return jax.jit(function).trace(*arguments).jaxpr


def gradient(shape, microbatches=1):
    """Returns the gradient of the loss on text as a function, and its arguments."""
    tokens = array((ROWS, LENGTH))
    batch = LMBatch(tokens, tokens, tokens, array((ROWS, LENGTH), jnp.float32))
    loss = objectives.language_model_loss(LanguageModel(shape))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return (
        lambda params, batch, key: summed_gradient(loss, params, batch, key, microbatches=microbatches)[0],
        (abstract_params(LanguageModel(shape)), batch, key),
    )


class TestForward:
    @settings(max_examples=10, deadline=None)
    @given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(2, 9), st.integers(1, 3), st.booleans())
    def test_the_formula_equals_the_trace(self, layers, heads, rows, length, widths, cached):
        shape = TransformerConfig(
            vocab_size=11, num_layers=layers, d_model=4 * widths, num_heads=heads, d_head=4, d_ff=7, max_length=32
        )
        model, tokens, slots = LanguageModel(shape), array((rows, length)), 20 if cached else length
        cache = jax.eval_shape(lambda: init_cache(shape, rows, 20)) if cached else None
        program = traced(
            lambda p, t, c: model.apply({"params": p}, t, t, t, c)[0], abstract_params(model), tokens, cache
        )
        assert traced_flops.count_matmul_flops(program) == flops.forward_flops(shape, rows, length, length, slots=slots)

    def test_a_scalar_model_has_a_head_of_one_column(self):
        model, tokens = ScalarModel(SHAPE), array((ROWS, LENGTH))
        program = traced(lambda p, t: model.apply({"params": p}, t, t, t), abstract_params(model), tokens)
        trunk = flops.forward_flops(SHAPE, ROWS, LENGTH, 0, slots=LENGTH)
        head = flops.scalar_flops(SHAPE, ROWS, LENGTH) - flops.forward_flops(SHAPE, ROWS, LENGTH, 0)
        assert traced_flops.count_matmul_flops(program) == trunk + head == trunk + 2 * ROWS * LENGTH * SHAPE.d_model

    def test_a_row_of_answers_computes_its_prompt_once(self):
        alone = flops.scalar_flops(SHAPE, ROWS, 5 + 3)
        assert flops.ranking_flops(SHAPE, ROWS, 5, 1, 3) == pytest.approx(alone)
        prompt = flops.scalar_flops(SHAPE, ROWS, 5)
        assert flops.ranking_flops(SHAPE, ROWS, 5, 4, 3) == pytest.approx(prompt + 4 * (alone - prompt))

    def test_attention_in_blocks_is_between_the_causal_and_the_dense_formula(self):
        shape = dataclasses.replace(SHAPE, max_length=1024)
        model, tokens = LanguageModel(shape), array((1, 1024))
        found = traced_flops.count_matmul_flops(
            traced(lambda p, t: model.apply({"params": p}, t, t, t)[0], abstract_params(model), tokens)
        )
        causal, dense = (flops.forward_flops(shape, 1, 1024, 1024, slots=slots) for slots in (None, 1024))
        assert causal < found < 0.6 * dense + 0.4 * causal


class TestGradient:
    FORWARD = flops.forward_flops(SHAPE, ROWS, LENGTH, LENGTH)

    def test_it_takes_at_least_three_forward_passes_and_more_with_recomputation(self):
        kept, recomputed = (
            traced_flops.count_matmul_flops(traced(function, *arguments))
            for function, arguments in (gradient(dataclasses.replace(SHAPE, remat=remat)) for remat in ("dense", "all"))
        )
        assert 3 * self.FORWARD < kept < recomputed < 4.1 * self.FORWARD

    def test_microbatches_do_not_change_the_flops(self):
        whole, parts = (
            traced_flops.count_matmul_flops(traced(f, *a))
            for f, a in (gradient(SHAPE), gradient(SHAPE, microbatches=4))
        )
        assert whole == parts

    @pytest.mark.parametrize("remat", ["dense", "all"])
    def test_the_compiler_counts_the_same_flops_in_an_unrolled_program(self, remat):
        function, arguments = gradient(dataclasses.replace(SHAPE, unroll=4, remat=remat))
        compiled = jax.jit(function).lower(*arguments).compile()
        # The compiler also counts norms, softmax and so on, and the loss's loop, which has one chunk, once.
        assert compiled.cost_analysis()["flops"] == pytest.approx(
            traced_flops.count_matmul_flops(traced(function, *arguments)), rel=0.05
        )


class TestStep:
    """The FLOPs of a step on real rows are those of the same texts, each alone."""

    def test_packed_texts_count_as_if_each_had_its_own_row(self):
        lengths = (5, 3)
        segments = np.array([[1] * 5 + [2] * 3 + [0] * 4], np.int32)
        positions = np.array([[*range(5), *range(3), *[0] * 4]], np.int32)
        batch = LMBatch(segments, segments, positions, (positions > 0).astype(np.float32))
        forward = sum(flops.forward_flops(SHAPE, 1, length, length - 1) for length in lengths)
        assert flops.training_flops(SHAPE, batch, logits=True) == pytest.approx(3 * forward)
        assert flops.training_flops(SHAPE, batch, logits=True, frozen=1) == pytest.approx(4 * forward)

    def test_a_ranking_counts_its_prompt_once_and_only_a_language_model_has_logits(self):
        tokenized = layouts.TokenizedRanking([3] * 4, [[3] * 6] * 2, [0, 1])
        row = layouts.ranking_row([tokenized], length=20, max_prompts=1, max_responses=2, pad_id=0)
        batch = jax.tree.map(lambda x: x[None], row)
        head = 2 * (4 + 2 * 6) * SHAPE.d_model  # of a scalar; too little to count in a step
        forward = flops.ranking_flops(SHAPE, 1, 4, 2, 6) - head
        assert flops.training_flops(SHAPE, batch, logits=False) == pytest.approx(3 * forward)
        logits = 2 * 12 * SHAPE.d_model * SHAPE.vocab_size
        assert flops.training_flops(SHAPE, batch, logits=True) == pytest.approx(3 * (forward + logits))

    @pytest.mark.parametrize("window", [1, 3, 5, 20])
    def test_local_layers_count_the_keys_of_their_window(self, window):
        local = dataclasses.replace(SHAPE, num_layers=5, local_window=window, window_pattern="DLL")  # D L L D L
        columns = np.arange(11)
        dense = columns[:, None] >= columns
        banded = dense & (columns[:, None] - columns < window)
        keys = (2 * dense.sum() + 3 * banded.sum()) / (5 * 11)  # per query and layer
        forward = flops.forward_flops(dataclasses.replace(SHAPE, num_layers=5), 1, 11, 0, slots=keys)
        assert flops.forward_flops(local, 1, 11, 0) == pytest.approx(forward)
        text = np.ones((1, 11), np.int32)
        batch = LMBatch(text, text, columns[None].astype(np.int32), text.astype(np.float32))
        assert flops.training_flops(local, batch, logits=False) == pytest.approx(3 * forward)

    def test_padding_and_other_objects_count_nothing(self):
        nothing = np.zeros((1, 4), np.int32)
        batch = LMBatch(nothing, nothing, nothing, nothing.astype(np.float32))
        assert flops.training_flops(SHAPE, batch, logits=True) == flops.training_flops(SHAPE, None, logits=True) == 0


class TestLoops:
    def test_a_scan_counts_its_length_and_a_while_loop_the_given_trips(self):
        square = array((8, 8), jnp.float32)
        once = traced_flops.count_matmul_flops(traced(lambda x: x @ x, square))
        assert once == 2 * 8**3
        scanned = traced(lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, length=5)[0], square)
        assert traced_flops.count_matmul_flops(scanned) == 5 * once
        looped = traced(lambda x: jax.lax.while_loop(lambda c: c.sum() < 1, lambda c: c @ c, x), square)
        assert traced_flops.count_matmul_flops(looped, trips=(7,)) == 7 * once
        assert traced_flops.count_matmul_flops(looped) == once

    def test_nested_loops_have_their_own_trips(self):
        def inner(x):
            return jax.lax.while_loop(lambda c: c.sum() < 1, lambda c: c @ c, x)

        square = array((8, 8), jnp.float32)
        program = traced(lambda x: jax.lax.while_loop(lambda c: c.sum() < 1, lambda c: inner(c @ c), x) @ x, square)
        assert traced_flops.count_matmul_flops(program, trips=(3, 5)) == (3 * (1 + 5) + 1) * 2 * 8**3

    def test_a_condition_counts_as_its_most_expensive_branch(self):
        square = array((8, 8), jnp.float32)
        program = traced(lambda x: jax.lax.cond(x.sum() > 0, lambda x: x @ x @ x, lambda x: x @ x, x), square)
        assert traced_flops.count_matmul_flops(program) == 2 * 2 * 8**3


def test_cache_bytes_are_those_of_its_arrays():
    cache = jax.eval_shape(lambda: init_cache(SHAPE, 3, 40))
    assert flops.cache_bytes(SHAPE, 3, 40) == sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves((cache.keys, cache.values))
    )


def test_the_matrices_are_nearly_all_of_the_weights():
    read = flops.weight_bytes(SHAPE) / 4
    assert 0.95 < read / flops.count_parameters(SHAPE) < 1
