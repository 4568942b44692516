"""The checks of a recipe's metrics: invariants and guards together."""

import math

import pytest

from configs import instructgpt, sandbox
from instructjax.errors import DivergenceError, InvariantError
from instructjax.runs import alarms


def checked(values, **changes):
    config = instructgpt.get_config()
    config.update_from_flattened_dict(changes)
    alarms.check_metrics(config)("ppo, step 3", values)


def test_sound_metrics_pass(capsys):
    checked({"loss": 1.5, "kl": 2.0, "response_tokens": 30.0})
    assert capsys.readouterr().out == ""


def test_an_invariant_stops():
    with pytest.raises(InvariantError, match="^ppo, step 3: loss: expected a finite number, found nan"):
        checked({"loss": math.nan})


def test_only_the_sampler_has_other_limits_with_rollouts_in_int8():
    config = sandbox.get_config()
    sampled, updated = {"sampler_kl": 1e-3, "sampler_deviation": 0.5}, {"first_approx_kl": 1e-3}
    alarms.check_metrics(config, rollout_dtype="int8")("ppo, step 3", sampled)
    for values, rollout_dtype in ((sampled, ""), (updated, "int8"), ({"sampler_kl": 0.1}, "int8")):
        with pytest.raises(InvariantError, match=f"^ppo, step 3: {next(iter(values))}: expected at most"):
            alarms.check_metrics(config, rollout_dtype)("ppo, step 3", values)


def test_an_invariant_warns_if_the_recipe_says_so(capsys):
    checked({"loss": math.nan}, invariants="warn")
    assert capsys.readouterr().out.startswith("warning: ppo, step 3: loss: expected a finite number")


def test_a_guard_warns_or_stops(capsys):
    checked({"kl": 1e6})
    assert capsys.readouterr().out.startswith("warning: ppo, step 3: kl is 1e+06, and guards.max_kl is reached")
    with pytest.raises(DivergenceError, match="^ppo, step 3: kl is 1e"):
        checked({"kl": 1e6}, **{"guards.action": "stop"})


def test_a_kl_clearly_below_zero_is_told(capsys):
    checked({"kl": -0.3, "kl_standard_error": 0.1, "validation_kl": -1e-4, "validation_kl_standard_error": 1e-6})
    assert capsys.readouterr().out == ""  # chance, and rounding
    checked({"kl": -2.47, "kl_standard_error": 0.1})
    checked({"validation_kl": -2.47, "validation_kl_standard_error": 0.1})
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("warning: ppo, step 3: kl is -2.47, more than 4 standard errors (0.1) below 0, which a KL")
    assert second.startswith("warning: ppo, step 3: validation_kl is -2.47, more than 4 ")
