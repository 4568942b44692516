"""The arms of claims.py: what each changes in the recipe, and which stages it trains.

Factors are of the recipe's values, so that the arms of a smaller variant are smaller too.
"""

import itertools

from instructjax.records import Ranking
from instructjax.stages import ppo, ppo_init, reward
from instructjax.stages.arms import Arm

HALF = {"ppo.iterations": 0.5}


def fifth(rankings):
    """Returns the first fifth of the rankings."""
    return list(rankings[: max(1, len(rankings) // 5)])


def pairs(rankings):
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
        for one in fifth(rankings)
        for pair in itertools.combinations(range(len(one.scores)), 2)
        if one.scores[pair[0]] != one.scores[pair[1]]
    ]


def _reward(name, rankings=fifth, **scale):
    return Arm(name, (reward.run,), scale={f"reward.{key}": factor for key, factor in scale.items()}, rankings=rankings)


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
    Arm("ptx_gamma_low", (ppo.run_with_text,), scale={"ppo.ptx_coefficient": 0.1}),
    Arm("ptx_gamma_high", (ppo.run_with_text,), scale={"ppo.ptx_coefficient": 10}),
    *(
        Arm(f"{name}_rate_{factor}", (stage,), scale={**HALF, "ppo.learning_rate": factor})
        for factor in (3, 10)
        for name, stage in (("ppo", ppo.run), ("ptx", ppo.run_with_text))
    ),
    Arm("init_text_0", (ppo_init.run, ppo.run), {"ppo_init.text_share": 0.0}, HALF),
    Arm("init_text_50", (ppo_init.run, ppo.run), {"ppo_init.text_share": 0.5}, HALF),
)
