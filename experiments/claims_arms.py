"""The arms of claims.py: what each changes in the recipe, and which stages it trains.

Factors are of the recipe's values, so that the arms of a smaller variant are smaller too.
"""

import itertools

import numpy as np

from instructjax.records import Demonstration, Ranking
from instructjax.sandbox import public_tasks
from instructjax.stages import ppo, ppo_init, pretrain, reward, sft
from instructjax.stages.arms import Arm

HALF = {"ppo.iterations": 0.5}
SIZES = {"quarter": 0.25, "half": 0.5}  # of the width; with the recipe's, parameters 57k, 164k and 528k
FOLDS = {f"reward_fold_{fold}": fold for fold in range(5)}


def fifth(rankings, seed):
    """Returns the first fifth of the rankings."""
    return list(rankings[: max(1, len(rankings) // 5)])


def pairs(rankings, seed):
    """Returns each untied pair of the answers of the first fifth as a ranking of its own."""
    return [
        Ranking(
            prompt=one.prompt,
            responses=tuple(one.responses[k] for k in pair),
            scores=tuple(one.scores[k] for k in pair),
            labeler=one.labeler,
            user=one.user,
            split=one.split,
            use_case=one.use_case,
            source=one.source,
        )
        for one in fifth(rankings, seed)
        for pair in itertools.combinations(range(len(one.scores)), 2)
        if one.scores[pair[0]] != one.scores[pair[1]]
    ]


def group(ranking):
    """Returns the group, from 0 to 4, of the labeler of a ranking, such as "training-07"."""
    return int(ranking.labeler.rpartition("-")[2]) % len(FOLDS)


def without_group(fold):
    """Returns a function that leaves out the rankings by a group of labelers."""
    return lambda rankings, seed: [one for one in rankings if group(one) != fold]


def _reward(name, rankings=fifth, **scale):
    return Arm(
        name,
        (reward.run,),
        scale={f"reward.{key}": factor for key, factor in scale.items()},
        records={Ranking: rankings},
    )


def public_tasks_of(use_cases):
    """Returns a function that writes eight times as many examples of public tasks as there are demonstrations."""
    return lambda found, seed: public_tasks.write_examples(np.random.default_rng([seed, 7]), use_cases, 8 * len(found))


def _fine_tuned(name, use_cases):
    scale = {"sft.epochs": 1 / 16, "log.save_every": 0.25}
    return Arm(name, (sft.run,), scale=scale, records={Demonstration: public_tasks_of(use_cases)})


def _size(name, factor):
    scale = {f"model.{key}": factor for key in ("d_model", "num_heads", "d_ff")}
    scale["model.init_std"] = factor**-0.5  # as in the recipe, about 1 / sqrt(d_model)
    return Arm(name, (pretrain.run, sft.run, reward.run, ppo_init.run, ppo.run_with_text), scale=scale)


ARMS = (
    # The recipe has two epochs. Answers are 4 to 9, so a prompt has about 18 untied pairs.
    _reward("reward_fifth"),
    _reward("reward_once", epochs=0.5),
    _reward("reward_pairs", pairs, epochs=0.5, batch_size=16),
    _reward("reward_long", epochs=4),
    _reward("reward_high", learning_rate=1.5),
    _reward("reward_low", learning_rate=0.5),
    Arm("ppo_kl_0", (ppo.run,), {"ppo.kl_coefficient": 0.0}),
    Arm("ppo_kl_2", (ppo.run,), {"ppo.kl_coefficient": 2.0}),
    Arm("ptx_kl_0", (ppo.run_with_text,), {"ppo.kl_coefficient": 0.0}),
    Arm("ptx_kl_2", (ppo.run_with_text,), {"ppo.kl_coefficient": 2.0}),
    Arm("ptx_gamma_01", (ppo.run_with_text,), scale={"ppo.ptx_coefficient": 0.1}),
    Arm("ptx_gamma_10", (ppo.run_with_text,), scale={"ppo.ptx_coefficient": 10}),
    *(
        Arm(f"{name}_rate_{factor}", (stage,), scale={**HALF, "ppo.learning_rate": factor})
        for factor in (3, 10)
        for name, stage in (("ppo", ppo.run), ("ptx", ppo.run_with_text))
    ),
    Arm("init_text_0", (ppo_init.run, ppo.run), {"ppo_init.text_share": 0.0}, HALF),
    Arm("init_text_50", (ppo_init.run, ppo.run), {"ppo_init.text_share": 0.5}, HALF),
    # The same weights as the run's SFT, with a checkpoint and a measurement after about every epoch of the recipe.
    Arm(
        "sft_epochs",
        (sft.run,),
        {"log.every": 1, "sft.candidates": 16},
        {"log.evaluate_every": 0.37, "log.save_every": 0.185},
    ),
    *(_reward(name, without_group(fold), epochs=0.5) for name, fold in FOLDS.items()),
    # No example is repeated. The recipe's SFT has 16 epochs, so it sees twice as many.
    _fine_tuned("flan", public_tasks.FLAN),
    _fine_tuned("t0", public_tasks.T0),
    *(_size(f"size_{name}", factor) for name, factor in SIZES.items()),
)

# Policies that answer the test prompts and are compared with the run's SFT, by arm.
JUDGED = {
    "flan": ("sft_best",),
    "t0": ("sft_best",),
    "sft_epochs": ("sft_first", "sft"),
    **{f"size_{name}": ("pretrain", "sft", "ppo_ptx") for name in SIZES},
}
