"""Growth is measured on the right programs, and exponents are those of the costs."""

import jax
import jax.numpy as jnp
from benchmarks import cost_growth

from configs import sandbox


def test_a_program_is_measured_by_its_memory_and_time():
    def widened(state, rows):
        return state, jax.lax.sort(jnp.sin(state + rows * jnp.arange(2.0**20))).sum()  # 4 MiB at once

    found = cost_growth.measure(jax.jit(widened, donate_argnums=0), jnp.ones(()), (jnp.ones(()),), steps=2)
    assert found["seconds"] > 0 and 4 * 2**20 <= found["bytes"] < 64 * 2**20


def test_a_picture_has_time_and_memory_of_each_size(tmp_path):
    costs = [{"seconds": 1.0, "bytes": 10}, {"seconds": 2.0, "bytes": 40}]
    found = {"layers": {"values": [2, 4], "costs": costs, "exponents": {"seconds": 1.0, "bytes": 2.0}}}
    figure = cost_growth.picture(found)
    labels = [axes.get_lines()[0].get_label() for axes in figure.axes]
    assert labels == ["layers: 1.00", "layers: 2.00"]
    figure.savefig(tmp_path / "growth.png")


def test_both_programs_have_the_requested_sizes():
    config = sandbox.get_config().copy_and_resolve_references().unlock()
    _, state, (batch, *_) = cost_growth.iteration(config, {**cost_growth.EPISODES, "episodes": 8, "vocabulary": 2048})
    assert batch[0].tokens.shape[0] == 8
    assert state.policy.params["trunk"]["token_embedding"].shape[0] == 2048
    _, _, (batch, _) = cost_growth.ranking(config, {"answers K": 3})
    assert batch.scores.shape == (4, 1, 3)
