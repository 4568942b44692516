"""The paper's claims that the sandbox can test: for each, the numbers of experiments/claims.py that decide it.

Numbers are found as ARM.STAGE.PLACE.METRIC, on validation prompts and text, or ARM.results.PATH, on test prompts. The
arm "base" is the run itself. Figures of the paper that are marked "about" are read off a chart.
"""

from __future__ import annotations

from instructjax.evaluation.claims import Claim, Part

_MODELS = "base.results.models"


def _win_rate(model: str, labelers: str = "heldout") -> str:
    return f"{_MODELS}.{model}.win_rate_vs_sft.{labelers}.mean"


CLAIMS = (
    Claim(
        "a",
        "4.1, Figure 1",
        "Labelers prefer PPO and PPO-ptx to SFT, SFT to prompted GPT, and prompted GPT to GPT.",
        "win rate against 175B SFT, 175B models: GPT about .23, prompted .41, SFT .49, PPO .62, PPO-ptx .65",
        (
            Part("win rate, prompted GPT − GPT", _win_rate("gpt_prompted"), _win_rate("gpt"), above=0),
            Part("win rate, SFT − prompted GPT", _win_rate("sft"), _win_rate("gpt_prompted"), above=0),
            Part("win rate, PPO − SFT", _win_rate("ppo"), _win_rate("sft"), above=0),
            Part("win rate, PPO-ptx − SFT", _win_rate("ppo_ptx"), _win_rate("sft"), above=0),
        ),
        "Held-out labelers compare with another sample of SFT.",
    ),
    Claim(
        "c",
        "4.1, Figure 3",
        "Held-out labelers, who wrote no training data, have similar preferences.",
        "win rate of 175B PPO-ptx: about .65 by training labelers, about .70 by held-out ones",
        (
            Part("win rate of PPO, held-out", _win_rate("ppo"), above=0.5),
            Part("win rate of PPO-ptx, held-out", _win_rate("ppo_ptx"), above=0.5),
            Part("PPO, held-out − training", _win_rate("ppo"), _win_rate("ppo", "training"), above=-0.05, below=0.05),
            Part(
                "PPO-ptx, held-out − training",
                _win_rate("ppo_ptx"),
                _win_rate("ppo_ptx", "training"),
                above=-0.05,
                below=0.05,
            ),
        ),
        "Similar: within .05, as are the paper's figures. Here both groups have tastes around the same mean.",
    ),
    Claim(
        "f",
        "3.5, C.2",
        "A reward model overfits if the pairs of a prompt are shuffled into the data set, and after more epochs; a "
        "learning rate 50 % higher or lower makes little difference.",
        "no figures",
        (
            Part(
                "validation loss after one epoch, shuffled pairs − all pairs of a prompt together",
                "reward_pairs.reward.end.validation_loss",
                "reward_once.reward.end.validation_loss",
                above=0,
            ),
            Part(
                "validation loss, 8 epochs − 1 epoch",
                "reward_long.reward.end.validation_loss",
                "reward_once.reward.end.validation_loss",
                above=0,
            ),
            Part(
                "accuracy, learning rate + 50 % − unchanged",
                "reward_high.reward.end.validation_accuracy",
                "reward_fifth.reward.end.validation_accuracy",
                above=-0.01,
                below=0.01,
            ),
            Part(
                "accuracy, learning rate − 50 % − unchanged",
                "reward_low.reward.end.validation_accuracy",
                "reward_fifth.reward.end.validation_accuracy",
                above=-0.01,
                below=0.01,
            ),
        ),
        "On the first fifth of the rankings. Little difference: an accuracy within .01.",
    ),
    Claim(
        "g",
        "4.2, E.6",
        "PPO regresses on public NLP data sets; pretraining gradients (ptx) repair it, and more with a larger "
        "coefficient, at the cost of reward. A larger KL coefficient does not repair it.",
        "SQuADv2 F1 of 1.3B models: GPT 52.0, PPO 45.4, PPO-ptx 45.5 without and 58.9, 48.1, 58.3 with examples; "
        "recovered at gamma 20 or more; not by KL coefficients up to 2, where the reward collapses (Figures 33, 34)",
        (
            Part("text loss, PPO − GPT", f"{_MODELS}.ppo.pretrain_loss", f"{_MODELS}.gpt.pretrain_loss", above=0.01),
            Part(
                "text loss, PPO-ptx − PPO",
                f"{_MODELS}.ppo_ptx.pretrain_loss",
                f"{_MODELS}.ppo.pretrain_loss",
                below=-0.01,
            ),
            Part(
                "text loss, gamma x 10 − gamma / 10",
                "ptx_gamma_high.ppo_ptx.end.text_loss",
                "ptx_gamma_low.ppo_ptx.end.text_loss",
                below=0,
            ),
            Part(
                "reward, gamma x 10 − gamma / 10",
                "ptx_gamma_high.ppo_ptx.end.validation_reward",
                "ptx_gamma_low.ppo_ptx.end.validation_reward",
                below=0,
            ),
            Part(
                "text loss, PPO with KL coefficient 2 − PPO-ptx",
                "ppo_kl_2.ppo.end.text_loss",
                "base.ppo_ptx.end.text_loss",
                above=0,
            ),
            Part(
                "reward, PPO with KL coefficient 2 − PPO-ptx",
                "ppo_kl_2.ppo.end.validation_reward",
                "base.ppo_ptx.end.validation_reward",
                below=0,
            ),
        ),
        "The loss on held-out pretraining text, in nats per token, takes the place of public data sets. A difference "
        "below .01 is not interpreted. The sandbox's gamma is 1.2 and the paper's 27.8.",
    ),
    Claim(
        "h",
        "E.7, Figure 36",
        "With ptx, KL coefficients of 0 and of 2 are both worse than one between.",
        "Likert about 2.1 at 0, 4.1 at .01, 3.9 at .02 and 3.1 at 2",
        (
            Part(
                "true quality, 0 − the recipe's",
                "ptx_kl_0.ppo_ptx.end.true_quality",
                "base.ppo_ptx.end.true_quality",
                below=0,
            ),
            Part(
                "true quality, 2 − the recipe's",
                "ptx_kl_2.ppo_ptx.end.true_quality",
                "base.ppo_ptx.end.true_quality",
                below=0,
            ),
        ),
        "The recipe's coefficient is .07 and the paper's .02.",
    ),
    Claim(
        "i",
        "E.9, Figure 38",
        "Large learning rates diverge without ptx, and do not with it.",
        "at 1.3B, of rates from 2.55e-6 to 2.55e-5, those above 8.05e-6 diverged without ptx",
        (
            Part(
                "true quality without ptx, end − start, rate x 10",
                "ppo_rate_10.ppo.end.true_quality",
                "ppo_rate_10.ppo.start.true_quality",
                below=0,
            ),
            Part(
                "true quality with ptx, end − start, rate x 10",
                "ptx_rate_10.ppo_ptx.end.true_quality",
                "ptx_rate_10.ppo_ptx.start.true_quality",
                above=0,
            ),
        ),
        "Half of the iterations. Diverged: the answers are worse than at the start. The "
        "policy's rate grows, not the value network's.",
        ("ppo_rate_3", "ptx_rate_3"),
    ),
    Claim(
        "l",
        "C.3, E.8, Figure 37",
        "PPO from an initial policy with 10 % of pretraining data is better than from one with 0 % or 50 %.",
        "Likert about 3.8 at 0 %, 4.0 at 10 % and 3.8 at 50 %",
        (
            Part(
                "true quality of PPO, 10 % − 0 %",
                "base.ppo.middle.true_quality",
                "init_text_0.ppo.end.true_quality",
                above=0,
            ),
            Part(
                "true quality of PPO, 10 % − 50 %",
                "base.ppo.middle.true_quality",
                "init_text_50.ppo.end.true_quality",
                above=0,
            ),
        ),
        "After half of the iterations.",
    ),
    Claim(
        "n",
        "3.5",
        "Without the KL penalty, PPO over-optimizes the reward model: as the KL grows, proxy and truth part.",
        "Likert about 2.1 without the penalty, 3.9 with .02 (Figure 36)",
        (
            Part(
                "KL, without − with the penalty",
                "ppo_kl_0.ppo.end.validation_kl",
                "base.ppo.end.validation_kl",
                above=0,
            ),
            Part(
                "reward, without − with the penalty",
                "ppo_kl_0.ppo.end.validation_reward",
                "base.ppo.end.validation_reward",
                above=0,
            ),
            Part(
                "true quality, without − with the penalty",
                "ppo_kl_0.ppo.end.true_quality",
                "base.ppo.end.true_quality",
                below=0,
            ),
        ),
        "Without ptx; the penalty is the recipe's .07.",
    ),
)
