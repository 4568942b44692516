"""The lengths are those of the paper's tables, and the shares are those of the rows that hold an episode."""

import ml_collections
import numpy as np
import pytest
from benchmarks import padding

from instructjax.reporting.paper_tables import LENGTHS

PAPER = ml_collections.ConfigDict(
    {"ppo": {"batch_size": 64, "minibatch_size": 16}, "data": {"max_prompt": 512, "max_response": 512}}
)


def test_lengths_have_the_quartiles_of_the_table():
    row = LENGTHS["prompts", "train"]
    found = padding.lengths(row, 20_000, np.random.default_rng(0))
    assert found.min() >= row[3] and found.max() <= row[7]
    np.testing.assert_allclose(np.quantile(found, [0.25, 0.5, 0.75]), row[4:7], rtol=0.1)


@pytest.mark.parametrize(("length", "expected"), [(8, 1.0), (5, 0.5), (3, 0.5), (2, 0.25)])
def test_the_share_of_parts_with_an_episode(length, expected):
    """Packs eight episodes into rows of ten columns, in four parts."""
    prompts, responses = np.full(8, length - 1), np.full(8, 1)
    assert padding.share_run(padding.episode_segments(prompts, responses, 9, 1), 4) == expected


def test_shares_lie_between_the_tokens_and_all_columns():
    found = padding.shares(PAPER, microbatches=8, parts=4, widths=3, seed=0)
    assert found["tokens"] < found["scoring"] <= found["updates"] < 0.6
    assert set(found["widths"]) <= {128, 256, 512} and found["widths"][0] < found["widths"][-1]
    assert found["prompt"] + found["response"] == pytest.approx(1024 * found["tokens"], rel=1e-6)
