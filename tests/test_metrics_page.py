"""docs/metrics.md has a row for each metric, and no others."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.runs import best, invariants, speed
from instructjax.stages import scoring
from instructjax.training import objectives
from tests import fakes
from tests.algorithms import test_ppo as ppo

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Measured on the host: by the loop, by evaluations of stages, and by sources of records.
ON_HOST = {"step", "text_loss", "demonstration_loss", "validation_loss", "validation_accuracy", "validation_kl"}
ON_HOST |= {"validation_kl_standard_error", "true_quality", *speed.MEASURED, *best.METRICS}
# Of the language models and the reward model: `training.step` adds the norm and the skipped updates.
OF_LOSSES = {"loss", "gradient_norm", "skipped", "skipped_in_a_row", "token_accuracy", "padding", "accuracy"}


def documented():
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def of_an_iteration():
    """Traces an iteration of PPO-ptx with all of its options, without computing it."""
    iterate = ppo.make(ppo.changed(kl_target=6.0, entropy_coefficient=0.01), models=ppo.REAL)
    state, frozen = jax.eval_shape(lambda: ppo.initial(ppo.real_params()))
    state = state.replace(kl_coefficient=jax.ShapeDtypeStruct((), jnp.float32))
    _, metrics = jax.eval_shape(iterate, state, (ppo.prompts(), ppo.text()), ppo.KEY, frozen)
    return set(metrics)


@pytest.fixture(scope="module")
def measured():
    return of_an_iteration() | set(scoring.spread(np.ones(2))) | ON_HOST | OF_LOSSES


def test_each_metric_has_one_row(measured):
    found = documented()
    assert len(found) == len(set(found))
    assert set(found) == measured


def test_what_is_checked_is_described():
    assert set(invariants.INVARIANTS) - {"frozen_changes"} <= set(documented())


def test_the_losses_of_other_stages_measure_what_the_page_says():
    params = jax.eval_shape(lambda: fakes.params(ppo.MODEL))
    _, language = jax.eval_shape(objectives.language_model_loss(ppo.MODEL), params, ppo.text(), ppo.KEY)
    assert set(language) <= OF_LOSSES
