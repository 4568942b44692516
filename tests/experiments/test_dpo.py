"""DPO: its equation pair by pair, its gradient, and a policy that the other scripts can use."""

import json
import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import dpo as recipes
from configs import sandbox
from instructjax import losses
from instructjax.algorithms.dpo import dpo_loss
from instructjax.data.layouts import TokenizedRanking
from instructjax.models.transformer import LanguageModel
from instructjax.runs import metrics_file
from instructjax.stages import answers, dpo, evaluate
from instructjax.stages.answers import Sampling
from instructjax.stages.run import Run
from tests import fakes, oracles
from tests.recipes import recipe, save_run, save_stage

MODEL = LanguageModel(fakes.CONFIG)
BETA = 0.3
PROMPTS = (2, 4, 3)  # tokens of each prompt
ANSWERS = ((1, 5, 3), (4, 2), (2, 3, 3))  # tokens of each answer
SCORES = ((2.0, 1.0, 1.0), (0.0, 1.0), (1.0, 3.0, 2.0))


def rankings():
    """Returns rankings with several lengths of prompts and answers; the second has one answer fewer."""
    rng = np.random.default_rng(1)
    return [
        TokenizedRanking(rng.integers(1, 16, prompt), [rng.integers(1, 16, length) for length in lengths], scores)
        for prompt, lengths, scores in zip(PROMPTS, ANSWERS, SCORES, strict=True)
    ]


def batch(rankings):
    """Returns a batch with two rankings in the first row, and one in each other row."""
    return oracles.packed([rankings[:2], rankings[2:]], length=24, prompts=2, answers=3)


@jax.jit
def answer_log_prob(params, tokens, start, end):
    """Computes log pi(y | x), a scalar: y is the tokens from `start` to before `end`, x the tokens before them."""
    columns = jnp.arange(tokens.shape[0])
    logits, _ = MODEL.apply({"params": params}, tokens[None], (columns < end)[None].astype(jnp.int32), columns[None])
    each = losses.log_probs(logits[0, :-1], tokens[1:])
    return jnp.where((columns[1:] >= start) & (columns[1:] < end), each, 0.0).sum()


def joined(ranking, k):
    """Returns the prompt with its k-th answer, padded, and the start and end of the answer."""
    text = np.concatenate([ranking.prompt, ranking.responses[k]]).astype(np.int32)
    return np.pad(text, (0, 10 - len(text))), len(ranking.prompt), len(text)


@pytest.fixture(scope="module")
def weights():
    """Returns the weights of (policy, reference)."""
    return fakes.params(MODEL, seed=1), fakes.params(MODEL, seed=2)


@jax.jit
def found_loss(params, reference, rankings):
    pair, _ = dpo_loss(params, rankings, None, reference, model=MODEL, beta=BETA)
    return losses.mean(*pair)


def test_it_is_the_papers_equation(weights):
    policy, reference = weights
    total = 0.0
    for ranking in rankings():
        rewards, scores = [], ranking.scores
        for k in range(len(ranking.responses)):
            answer = joined(ranking, k)
            rewards.append(BETA * float(answer_log_prob(policy, *answer) - answer_log_prob(reference, *answer)))
        pairs = [(i, j) for i in range(len(rewards)) for j in range(len(rewards)) if i < j]
        for i, j in pairs:
            if scores[i] != scores[j]:
                better, worse = (i, j) if scores[i] > scores[j] else (j, i)
                total += math.log1p(math.exp(rewards[worse] - rewards[better])) / len(pairs)
    np.testing.assert_allclose(found_loss(policy, reference, batch(rankings())), total / 3, rtol=1e-5)


def test_at_the_reference_the_gradient_pulls_the_better_answer_up_and_the_worse_down(weights):
    """Rafailov et al., section 4: the weight of a pair is beta sigma(0) where the policy is the reference."""
    reference, _ = weights
    pair = rankings()[1]  # two answers, the second is better

    def margin(params):
        return answer_log_prob(params, *joined(pair, 1)) - answer_log_prob(params, *joined(pair, 0))

    found = jax.grad(found_loss)(reference, reference, batch([pair]))
    wanted = jax.tree.map(lambda x: -BETA / 2 * x, jax.grad(margin)(reference))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted)
    stepped = jax.tree.map(lambda x, g: x - 0.01 * g, reference, found)
    assert margin(stepped) > margin(reference)


def test_at_the_reference_the_loss_is_that_of_a_coin_flip(weights):
    _, reference = weights
    pair = batch(rankings()[1:2])  # without ties
    np.testing.assert_allclose(found_loss(reference, reference, pair), math.log(2), rtol=1e-6)


def test_the_recipe_is_the_sandboxs_and_more():
    found, base = recipes.get_config("smoke").to_dict(), sandbox.get_config("smoke").to_dict()
    assert recipes.get_config("smoke").is_locked
    assert found.pop("dpo").keys() == {
        *("init_from", "beta", "epochs", "batch_size", "learning_rate", "final_fraction", "weight_decay"),
        "microbatches",
    }
    assert found["evaluate"].pop("guests") == ("dpo",)
    del base["evaluate"]["guests"]
    assert found == base


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs DPO on small files, in a folder whose other stages look finished. Returns (config, workdir)."""
    home = tmp_path_factory.mktemp("dpo")
    config, workdir = recipe(home).unlock(), home / "run"
    config.dpo = ml_collections.ConfigDict({**recipes.get_config().dpo, "epochs": 4, "batch_size": 8})
    config.log.update(every=1, save_every=5)
    config.evaluate.update(prompts=8, batch_size=8, text_windows=4, few_shot=0, few_shot_candidates=1, guests=("dpo",))
    tokenizer = Run(config, workdir).layout.tokenizer
    for stage in ("pretrain", "sft", "ppo_init"):
        save_stage(config, workdir, stage, tokenizer)
    dpo.run(Run(config, workdir))
    return config, workdir


def test_it_learns_the_rankings(run):
    _, workdir = run
    first, *_, last = metrics_file.read(workdir / "dpo" / "metrics.jsonl")
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-5) and first["accuracy"] == 0.5
    assert last["loss"] < first["loss"] and last["accuracy"] > 0.6


def test_a_finished_run_is_left_alone(run):
    config, workdir = run
    before = (workdir / "dpo" / "metrics.jsonl").read_bytes()
    dpo.run(Run(config, workdir))
    assert (workdir / "dpo" / "metrics.jsonl").read_bytes() == before


def test_its_policy_answers(run):
    config, workdir = run
    policy, layout = Run(config, workdir).open_policy("dpo")
    (answered,) = answers.answer(policy, layout, ["the fox"], jax.random.key(0), Sampling(1.0, 8))
    assert answered[0] == "the fox"


@pytest.mark.slow
def test_its_policy_is_judged_with_the_others(run):
    """The other models have random weights."""
    config, workdir = run
    run = Run(config, workdir, "name")
    save_run(run)
    found = evaluate.evaluate(run)["models"]
    assert found["dpo"]["pretrain_loss"] != found["sft"]["pretrain_loss"]
    assert found["dpo"]["reward"]["n"] == found["sft"]["reward"]["n"]
    assert "DPO" in (workdir / "report.md").read_text()
    row = json.loads((workdir / "evaluate" / "answers.jsonl").read_text().splitlines()[0])
    assert "dpo" in row
