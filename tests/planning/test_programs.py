import functools

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from configs import sandbox
from instructjax.batch import PromptBatch
from instructjax.errors import ConfigError
from instructjax.models import flops, lora
from instructjax.models.lora import LoraConfig
from instructjax.models.sizes import count_parameters
from instructjax.models.transformer import LanguageModel
from instructjax.planning import plan, ppo_programs, programs, shapes
from instructjax.rollout import refilling, sampling
from tests import fakes


@pytest.fixture(scope="module")
def config():
    return sandbox.get_config("smoke")


@functools.cache
def built(name, rank=0, one_base=True):
    """A program of the smoke recipe, or with adapters, traced once."""
    changes = {"lora.rank": rank, "lora.one_base": one_base}
    return programs.build(name, plan.override(sandbox.get_config("smoke"), changes))


@pytest.mark.parametrize(
    "name",
    ["pretrain", "reward", "ppo update", *(f"ppo_ptx {p}" for p in ("rollout", "scoring", "update", "iteration"))],
)
def test_executed_flops_are_the_formula_plus_recomputation(name):
    program = built(name)
    ratio = plan.count_executed_flops(program) / program.work.flops
    if name.endswith("rollout"):
        assert ratio == 1
    elif name.endswith("scoring"):
        assert 1 <= ratio < 1.1  # masked keys count; without a gradient nothing is recomputed
    else:
        # The einsums of a ranking also multiply the queries of an answer with the keys of the answers before it.
        assert 1 < ratio < (1.6 if name == "reward" else 1.34)


def test_responses_to_a_prompt_share_its_prefill(config):
    one, four = (programs.build("ppo rollout", plan.override(config, {"ppo.samples_per_prompt": k})) for k in (1, 4))
    assert plan.count_executed_flops(four) == four.work.flops
    # The logits after the prompt are computed once, too.
    assert four.phases["prefill"].flops == pytest.approx(one.phases["prefill"].flops / 4)
    assert four.phases["decode"].flops == one.phases["decode"].flops


def test_the_flops_of_an_iteration_are_the_sum_of_its_parts(config):
    rollout, scoring, update, whole = (
        built(f"ppo_ptx {part}").work.flops for part in ("rollout", "scoring", "update", "iteration")
    )
    updates = config.ppo.epochs * config.ppo.batch_size // config.ppo.minibatch_size
    assert whole == pytest.approx(rollout + scoring + updates * update)


def test_a_reward_function_and_no_critic_need_no_scalar_model(config):
    keys = {"ppo.reward_function": "math:fsum", "ppo.advantages": "rloo", "ppo.samples_per_prompt": 4}
    changed = plan.override(config, keys)
    shape, _ = shapes.model_configs(changed)
    scoring, update, learn = (programs.build(f"ppo {part}", changed) for part in ("scoring", "update", "iteration"))
    for program in (scoring, update, learn):  # the policy, its average and two moments; the reference
        held = sum(leaf.size for leaf in jax.tree.leaves((program.state, program.constants)))
        assert held == pytest.approx(5 * count_parameters(shape), rel=0.01)
    assert 0.5 < scoring.work.flops / built("ppo_ptx scoring").work.flops < 0.6  # two of four; these have logits
    updates = config.ppo.batch_size // config.ppo.minibatch_size
    assert learn.work.flops == pytest.approx(scoring.work.flops + updates * update.work.flops)
    assert learn.cache == 0


def test_the_flops_of_an_iteration_by_lengths_are_those_of_the_plan_and_of_sampling_every_token_once(config):
    policy, scalar = shapes.model_configs(config)
    scoring, update = (built(f"ppo {part}").work.flops for part in ("scoring", "update"))
    epochs = config.ppo.epochs
    updates = epochs * config.ppo.batch_size // config.ppo.minibatch_size
    rows, prompt, response = config.ppo.batch_size, config.data.max_prompt, config.data.max_response
    count = functools.partial(
        flops.iteration_flops, policy, scalar, scalar, rows=rows, prompt=prompt, response=response, critic_epochs=epochs
    )
    sampling = flops.forward_flops(policy, rows, prompt + response, response)
    assert count(epochs=epochs) == pytest.approx(sampling + scoring + updates * update)
    warmup = updates * built("ppo update").phases["value"].flops
    assert count(epochs=0) == pytest.approx(sampling + scoring + warmup)
    prefill = flops.forward_flops(policy, rows, prompt, 1)
    assert count(epochs=epochs, samples=4) == pytest.approx(count(epochs=epochs) - 3 / 4 * prefill)


def test_every_part_of_an_iteration_holds_all_of_its_weights(config):
    shape, scalar = shapes.model_configs(config)
    # The policy, its average and two moments; the value network and two moments; the frozen two.
    numbers = 5 * count_parameters(shape) + 4 * (count_parameters(scalar) + scalar.d_model + 1)
    for part in ("rollout", "scoring", "update", "iteration"):
        program = built(f"ppo_ptx {part}")
        leaves = jax.tree.leaves((program.state, program.constants))
        floats = sum(leaf.size for leaf in leaves if leaf.dtype == "float32")
        assert floats == numbers


@pytest.mark.parametrize("one_base", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_with_adapters_the_networks_of_an_iteration_hold_one_base_or_two(config, one_base):
    shape, _ = shapes.model_configs(config)
    rank = 4
    adapters = lora.count_parameters(LoraConfig(rank, 1.0, 0.0, ("*",)), shape)
    # The policy, its average and two moments; the value network and two moments; the frozen two.
    numbers = 9 * adapters + 4 * (shape.d_model + 1) + (1 if one_base else 2) * count_parameters(shape)
    program = built("ppo update", rank, one_base)
    leaves = jax.tree.leaves((program.state, program.constants))
    assert sum(leaf.size for leaf in leaves if leaf.dtype == "float32") == numbers


@pytest.mark.parametrize("name", ["sft", pytest.param("ppo update", marks=pytest.mark.slow)])
def test_adapters_save_the_gradients_of_kernels(name):
    full, program = built(name), built(name, rank=2)
    # Of three products per kernel one is left out; attention and adapters have all three.
    assert 2 / 3 < program.work.flops / full.work.flops < 0.8
    executed = [plan.count_executed_flops(found) for found in (program, full)]
    assert 2 / 3 < executed[0] / executed[1] < 0.85


def test_sampling_in_parts_divides_the_cache_and_reads_the_weights_once_per_part(config):
    whole, parts = (
        programs.build("ppo rollout", plan.override(config, {"ppo.rollout_parts": parts})) for parts in (1, 4)
    )
    assert parts.cache == whole.cache / 4
    assert parts.work.flops == whole.work.flops
    assert parts.work.weight_bytes == 4 * whole.work.weight_bytes


@pytest.mark.parametrize(("parts", "refill"), [(1, 9), (2, 1), (2, 3), (2, 1000)])
def test_refills_equal_those_of_the_sampler(parts, refill):
    total, response, model = 16, 6, LanguageModel(fakes.CONFIG)
    section = ml_collections.ConfigDict({"batch_size": total, "rollout_parts": parts, "rollout_refill": refill})
    prompts = PromptBatch(jnp.full((total, 2), 3), jnp.ones((total, 2), jnp.int32))
    sample = functools.partial(refilling.sample, model, choose=sampling.categorical(), rows=total // parts)
    _, decoded = jax.jit(functools.partial(sample, refill=refill, max_response=response, eos_id=-1, pad_id=0))(
        fakes.params(model), prompts, sampling.row_keys(jax.random.key(0), total)
    )
    _, rounds = ppo_programs.refills(section, 1)
    assert int(decoded) == rounds * (total // parts) * (response - 1)


@pytest.mark.parametrize("refill", [1, 3, 1000])
def test_executed_flops_of_continuous_batching_are_the_formula_plus_idle_rows(config, refill):
    changes = {"ppo.rollout_parts": 2, "ppo.rollout_refill": refill}
    program = programs.build("ppo rollout", plan.override(config, changes))
    total, rows = config.ppo.batch_size, config.ppo.batch_size // 2
    turns, rounds = ppo_programs.refills(plan.override(config, changes).ppo, 1)
    # The last prefill computes a full batch even if fewer prompts are left, and idle rows are computed, too.
    prefill = turns * min(refill, rows) / total * program.phases["prefill"].flops
    decode = rounds * rows / total * program.phases["decode"].flops
    assert plan.count_executed_flops(program) == pytest.approx(prefill + decode, rel=1e-6)


def test_each_device_refills_its_own_rows(config):
    weights = flops.weight_bytes(shapes.model_configs(config)[0])
    changes = {"ppo.batch_size": 64, "ppo.rollout_parts": 2, "ppo.rollout_refill": 3, "parallel.data": 4}
    program = programs.build("ppo rollout", plan.override(config, changes))
    # A device has 8 rows for 16 prompts. It prefills 3 and 3, then 3 and 3, then 3 and 1.
    assert program.phases["prefill"].weight_bytes == 6 * weights
    assert program.phases["decode"].weight_bytes == 3 * (config.data.max_response - 1) * weights


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "int8xint8"])
def test_rollouts_in_int8_read_a_byte_per_weight(config, dtype):
    int8, given = (
        programs.build("ppo rollout", plan.override(config, {"ppo.rollout_dtype": chosen})).phases
        for chosen in (dtype, "")
    )
    size = flops.itemsize(config.model.dtype)
    assert size > 1 and size * int8["decode"].weight_bytes == given["decode"].weight_bytes
    assert int8["decode"].bytes == given["decode"].bytes and int8["decode"].flops == given["decode"].flops


def test_more_devices_than_rows_are_an_obstacle(config):
    changes = {"ppo.batch_size": 64, "ppo.rollout_parts": 4, "ppo.rollout_refill": 1}
    program = programs.build("ppo rollout", plan.override(config, changes | {"parallel.data": 32}))
    assert plan.uneven_rows(program, (32, 1, 1)).startswith("ppo.batch_size / ppo.rollout_parts: 64 / 4 rows")


@pytest.mark.parametrize(("refill", "uneven"), [(0, "64 / 4"), (1, "")])
def test_a_part_of_a_rollout_has_whole_groups_on_each_device(config, refill, uneven):
    changes = {"ppo.batch_size": 256, "ppo.minibatch_size": 256, "ppo.rollout_parts": 4, "ppo.rollout_refill": refill}
    program = programs.build("ppo rollout", plan.override(config, changes | {"ppo.samples_per_prompt": 4}))
    assert uneven in plan.uneven_rows(program, (32, 1, 1)) and bool(uneven) == bool(
        plan.uneven_rows(program, (32, 1, 1))
    )


def test_the_cache_includes_the_prompts_that_refill_idle_rows(config):
    plain, refilled = (
        programs.build("ppo rollout", plan.override(config, {"ppo.rollout_refill": refill})).cache for refill in (0, 4)
    )
    assert refilled - plain == flops.cache_bytes(shapes.model_configs(config)[0], 4, config.data.max_prompt)


def test_pmap_is_rejected(config):
    with pytest.raises(ConfigError, match="parallel.mode: expected 'jit' for a plan, found 'pmap'"):
        programs.build("sft", plan.override(config, {"parallel.mode": "pmap"}))


def test_work_adds_up():
    work = flops.Work(1.0, 2.0, 3.0)
    assert work + 2 * work == flops.Work(3.0, 6.0, 9.0)
