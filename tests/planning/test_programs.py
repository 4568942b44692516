import jax
import pytest

from configs import sandbox
from instructjax.errors import ConfigError
from instructjax.models.sizes import count_parameters
from instructjax.planning import flops, plan, programs


@pytest.fixture(scope="module")
def config():
    return sandbox.get_config("smoke")


@pytest.mark.parametrize(
    "name",
    ["pretrain", "reward", "ppo update", *(f"ppo_ptx {p}" for p in ("rollout", "scoring", "update", "iteration"))],
)
def test_what_a_program_does_is_what_its_formula_says_or_recomputed(name, config):
    program = programs.build(name, config)
    ratio = plan.executed(program) / program.work.flops
    if name.endswith("rollout"):
        assert ratio == 1
    elif name.endswith("scoring"):
        assert 1 <= ratio < 1.1  # keys that the mask hides; without a gradient nothing is computed again
    else:
        assert 1 < ratio < 1.34


def test_an_iteration_is_its_parts(config):
    rollout, scoring, update, whole = (
        programs.build(f"ppo_ptx {part}", config).work.flops for part in ("rollout", "scoring", "update", "iteration")
    )
    updates = config.ppo.epochs * config.ppo.batch_size // config.ppo.minibatch_size
    assert whole == pytest.approx(rollout + scoring + updates * update)


def test_all_parts_of_an_iteration_hold_all_of_its_weights(config):
    shape, scalar = programs.shapes(config)
    # The policy, its average and two moments; the value network and two moments; the frozen two.
    numbers = 5 * count_parameters(shape) + 4 * (count_parameters(scalar) + scalar.d_model + 1)
    for part in ("rollout", "scoring", "update", "iteration"):
        program = programs.build(f"ppo_ptx {part}", config)
        leaves = jax.tree.leaves((program.state, program.constants))
        floats = sum(leaf.size for leaf in leaves if leaf.dtype == "float32")
        assert floats == numbers


def test_sampling_in_parts_divides_the_cache_and_reads_the_weights_as_often(config):
    whole, parts = (
        programs.build("ppo rollout", plan.changed(config, {"ppo.rollout_parts": parts})) for parts in (1, 4)
    )
    assert parts.cache == whole.cache / 4
    assert parts.work.flops == whole.work.flops
    assert parts.work.weight_bytes == 4 * whole.work.weight_bytes


@pytest.mark.parametrize("refill", [1, 3, 1000])
def test_rows_that_take_the_next_prompt_do_no_more(config, refill):
    """If every response has all of its tokens; one that ends gives its row to the next, which saves the rest."""
    changes = {"ppo.rollout_parts": 2, "ppo.rollout_refill": refill}
    refilled = programs.build("ppo rollout", plan.changed(config, changes))
    parts = programs.build("ppo rollout", plan.changed(config, changes | {"ppo.rollout_refill": 0}))
    # Where the last prompts are fewer than places, the places that are left over are computed too.
    computed = -(-config.ppo.batch_size // refill) * refill if refill < 1000 else config.ppo.batch_size
    more = (computed / config.ppo.batch_size - 1) * refilled.phases["prefill"].flops
    assert plan.executed(refilled) == pytest.approx(refilled.work.flops + more, rel=1e-6)
    assert refilled.work.flops < parts.work.flops
    assert refilled.phases["decode"] == parts.phases["decode"]


def test_pmap_has_no_plan(config):
    with pytest.raises(ConfigError, match="parallel.mode: expected 'jit' for a plan, found 'pmap'"):
        programs.build("sft", plan.changed(config, {"parallel.mode": "pmap"}))


def test_the_kinds_of_work_add_up():
    work = flops.Work(1.0, 2.0, 3.0)
    assert work + 2 * work == flops.Work(3.0, 6.0, 9.0)
