"""A token sees its segment, its branch and the window of its layer, but no padding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.models.attention import Visible
from instructjax.models.block import Block
from instructjax.models.transformer import LanguageModel, ScalarModel
from tests import fakes


@functools.cache
def influence_of(config):
    """Returns a function of parameters and one row, to [T, T] bool: whether the hidden state at the
    first index has a gradient in the token at the second."""

    def influence(params, tokens, segments, positions):
        # Each place of the row gets its own embedding, so that gradients distinguish places.
        places = jnp.arange(tokens.shape[1])[None]
        model = LanguageModel(dataclasses.replace(config, vocab_size=tokens.shape[1]))

        def hidden(table):
            trunk = {**params["trunk"], "token_embedding": table}
            return model.apply({"params": {"trunk": trunk}}, places, segments, positions, method="hidden")[0][0]

        return jnp.abs(jax.jacobian(hidden)(params["trunk"]["token_embedding"][tokens[0]])).sum((1, 3)) > 0

    return jax.jit(influence)


@pytest.mark.parametrize("segments", [[1] * 8, [1, 1, 1, 2, 2, 3, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1]])
def test_gradient_reaches_earlier_tokens_of_the_segment_and_no_others(segments):
    found = influence_of(fakes.DECODER)(fakes.params(LanguageModel(fakes.DECODER)), *fakes.rows_of([segments]))
    for i, mine in enumerate(segments):
        if mine:
            expected = [j <= i and other == mine for j, other in enumerate(segments)]
            np.testing.assert_array_equal(found[i], expected)


def test_a_banded_layer_sees_the_window_and_a_dense_layer_all():
    length, window = 10, 3
    distance = np.arange(length)[:, None] - np.arange(length)[None]
    # One block is run alone, as even and as odd layers.
    config = dataclasses.replace(fakes.BANDED_DECODER, num_layers=1)
    params = fakes.params(LanguageModel(config))["trunk"]["blocks"]
    block = {"params": jax.tree.map(lambda leaf: leaf[0], params)}
    dense = jnp.asarray(distance >= 0)[None]
    banded = jnp.asarray((distance >= 0) & (distance < window))[None]
    x = jax.random.normal(jax.random.key(3), (1, length, config.d_model))

    def run(x, layer):
        (y, _, _), _ = Block(config).apply(block, (x, None, None), layer, 0, Visible(dense, banded), None, True)
        return y[0]

    jacobian = jax.jit(jax.jacobian(run))
    for layer, mask in ((0, dense), (1, banded), (2, dense), (3, banded)):
        reach = jnp.abs(jacobian(x, layer)).sum((1, 2, 4)) > 0
        np.testing.assert_array_equal(reach, mask[0])


def test_a_wide_window_changes_nothing_and_a_narrow_one_does():
    rows = fakes.rows_of([[1] * 8])
    params = fakes.params(LanguageModel(fakes.BANDED_DECODER))
    dense, wide, narrow = (
        fakes.logits_of(dataclasses.replace(fakes.BANDED_DECODER, local_window=window), params, *rows)
        for window in (None, 8, 3)
    )
    np.testing.assert_array_equal(wide, dense)
    np.testing.assert_allclose(narrow[:, :3], dense[:, :3], atol=1e-5)
    assert float(jnp.abs(narrow[:, 3:] - dense[:, 3:]).min(-1).max()) > 1e-3


@pytest.mark.parametrize("config", [fakes.DECODER, fakes.BANDED_DECODER], ids=["dense", "banded"])
@pytest.mark.parametrize("pad", [(4, 0), (0, 4), (1, 3)])
def test_padding_changes_no_output(config, pad):
    tokens, segments, positions = fakes.rows_of([[1] * 6, [1] * 6])
    params = fakes.params(LanguageModel(config))
    alone = fakes.logits_of(config, params, tokens, segments, positions)
    widths = ((0, 0), pad)
    padded = fakes.logits_of(
        config,
        params,
        jnp.pad(tokens, widths, constant_values=7),
        jnp.pad(segments, widths),
        jnp.pad(positions, widths, constant_values=5),
    )
    assert bool(jnp.isfinite(padded).all())
    np.testing.assert_allclose(padded[:, pad[0] : pad[0] + 6], alone, atol=1e-5)


@pytest.mark.parametrize("config", [fakes.DECODER, fakes.BANDED_DECODER], ids=["dense", "banded"])
def test_packed_rows_equal_separate_rows(config):
    packed = fakes.rows_of([[1] * 4 + [2] * 4 + [3] * 4])
    separate = [a.reshape(3, 4) for a in packed]
    params, scalar = fakes.params(LanguageModel(config)), ScalarModel(config)
    logits = fakes.logits_of(config, params, *separate).reshape(1, 12, -1)
    np.testing.assert_allclose(fakes.logits_of(config, params, *packed), logits, atol=1e-5)
    params = fakes.params(scalar)
    values = fakes.compiled(scalar)(params, *separate).reshape(1, 12)
    np.testing.assert_allclose(fakes.compiled(scalar)(params, *packed), values, atol=1e-5)


@pytest.mark.parametrize("config", [fakes.DECODER, fakes.BANDED_DECODER], ids=["dense", "banded"])
def test_continuations_in_one_row_equal_each_alone(config):
    """The row has a prefix of 3 with continuations of 4, 2 and 3 tokens, a prefix of 2 with one of 4, and padding."""
    layout = [(1, 3, (4, 2, 3)), (2, 2, (4,))]
    columns = {"segments": [], "branches": [], "positions": []}
    for segment, prefix, sizes in layout:
        for branch, size in enumerate((prefix, *sizes)):
            columns["segments"] += [segment] * size
            columns["branches"] += [branch] * size
            columns["positions"] += [*range(prefix if branch else 0, (prefix if branch else 0) + size)]
    segments, branches, positions = (jnp.array([[*column, 0, 0]]) for column in columns.values())
    tokens, _, _ = fakes.rows_of(segments)
    params, scalar = fakes.params(LanguageModel(config)), fakes.params(ScalarModel(config))
    found, _ = LanguageModel(config).apply({"params": params}, tokens, segments, positions, branches=branches)
    scalars = ScalarModel(config).apply({"params": scalar}, tokens, segments, positions, branches=branches)
    for segment, prefix, sizes in layout:
        for branch in range(1, len(sizes) + 1):
            own = np.flatnonzero((segments[0] == segment) & ((branches[0] == 0) | (branches[0] == branch)))
            row = tokens[:, own], jnp.ones((1, len(own)), jnp.int32), jnp.arange(len(own))[None]
            assert len(own) == prefix + sizes[branch - 1]
            np.testing.assert_allclose(found[:, own], fakes.logits_of(config, params, *row), atol=1e-5)
            np.testing.assert_allclose(scalars[:, own], fakes.compiled(ScalarModel(config))(scalar, *row), atol=1e-5)
