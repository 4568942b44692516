"""A fault of others in the labels of SFT, caught by an existing test."""

import numpy as np
import pytest

from instructjax.data import layouts
from tests.algorithms.test_ppo_invariants import after, planted
from tests.data import test_layouts


def test_eos_is_not_learned_because_it_is_also_the_padding(monkeypatch):
    """Gives weight 0 to each token whose id is that of the padding, and with it to EOS."""
    unlearned = after(lambda row: row.replace(weights=np.where(row.tokens == test_layouts.EOS, 0, row.weights)))
    test_layouts.test_demonstration(0.0)
    planted(monkeypatch, layouts, "demonstration_row", unlearned)
    with pytest.raises(AssertionError):
        test_layouts.test_demonstration(0.0)
