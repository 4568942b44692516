"""The paper's claims that the sandbox can test: for each, the numbers of experiments/claims.py that decide it.

Numbers are found as ARM.STAGE.PLACE.METRIC, on validation prompts and text, or ARM.results.PATH, on test prompts. The
arm "base" is the run itself. Figures of the paper that are marked "about" are read off a chart.
"""

from __future__ import annotations

import math

from instructjax.evaluation.claims import Claim, Part

_MODELS = "base.results.models"


def _end(about: str, metric: str, plus: str, minus: str, above: float = -math.inf, below: float = math.inf) -> Part:
    """Returns a difference between the ends of two stages, or at the place that is named instead: ARM.STAGE[.PLACE]."""
    first, second = (f"{side if side.count('.') > 1 else side + '.end'}.{metric}" for side in (plus, minus))
    return Part(about, first, second, above, below)


def _models(about: str, path: str, plus: str, minus: str, above: float = -math.inf, below: float = math.inf) -> Part:
    """Returns a difference between two models of the run in results.json."""
    return Part(about, f"{_MODELS}.{plus}.{path}", f"{_MODELS}.{minus}.{path}", above, below)


def _win_rate(model: str, labelers: str = "heldout") -> str:
    return f"{_MODELS}.{model}.win_rate_vs_sft.{labelers}.mean"


def _folds(labelers: str) -> tuple[str, ...]:
    return tuple(f"reward_fold_{fold}.accuracy.{labelers}" for fold in range(5))


_EPOCHS = "sft_epochs.judged"
_WIN_RATE = "win_rate_vs_sft.heldout.mean"

CLAIMS = (
    Claim(
        "a",
        "4.1, Figure 1",
        "Labelers prefer PPO and PPO-ptx to SFT, SFT to prompted GPT, and prompted GPT to GPT.",
        "win rate against 175B SFT, 175B models: GPT about .23, prompted .41, SFT .49, PPO .62, PPO-ptx .65",
        (
            _models("win rate, prompted GPT − GPT", _WIN_RATE, "gpt_prompted", "gpt", above=0),
            _models("win rate, SFT − prompted GPT", _WIN_RATE, "sft", "gpt_prompted", above=0),
            _models("win rate, PPO − SFT", _WIN_RATE, "ppo", "sft", above=0),
            _models("win rate, PPO-ptx − SFT", _WIN_RATE, "ppo_ptx", "sft", above=0),
        ),
        "Held-out labelers compare with another sample of SFT.",
    ),
    Claim(
        "b",
        "4.1, Figure 1",
        "A small PPO-ptx is preferred to a GPT many times larger.",
        "win rate against 175B SFT: 1.3B PPO-ptx about .52, 175B GPT about .23, prompted .41",
        (
            Part(
                "win rate, PPO-ptx of 57k parameters − GPT of 528k",
                "size_quarter.judged.ppo_ptx.win_rate",
                _win_rate("gpt"),
                above=0,
            ),
        ),
        "The paper's GPT is more than 100 times larger, and this one 9 times. Each size has a reward model of its own "
        "size, which learns from the same rankings of the largest SFT's answers.",
    ),
    Claim(
        "c",
        "4.1, Figure 3",
        "Held-out labelers, who wrote no training data, have similar preferences.",
        "win rate of 175B PPO-ptx: about .65 by training labelers, about .70 by held-out ones",
        (
            Part("win rate of PPO, held-out", _win_rate("ppo"), above=0.5),
            Part("win rate of PPO-ptx, held-out", _win_rate("ppo_ptx"), above=0.5),
            *(
                Part(f"{name}, held-out − training", _win_rate(model), _win_rate(model, "training"), -0.05, 0.05)
                for name, model in (("PPO", "ppo"), ("PPO-ptx", "ppo_ptx"))
            ),
        ),
        "Similar: within .05, as are the paper's figures. Here both groups have tastes around the same mean.",
    ),
    Claim(
        "d",
        "4.1, Figure 1",
        "The win rate grows with the size of the model.",
        "win rate against 175B SFT at 1.3B, 6B and 175B: SFT about .34, .40, .49; PPO-ptx about .52, .55, .65",
        tuple(
            part
            for name, model in (("SFT", "sft"), ("PPO-ptx", "ppo_ptx"))
            for part in (
                Part(
                    f"win rate of {name}, 164k − 57k parameters",
                    f"size_half.judged.{model}.win_rate",
                    f"size_quarter.judged.{model}.win_rate",
                    above=0,
                ),
                Part(
                    f"win rate of {name}, 528k − 164k",
                    _win_rate(model),
                    f"size_half.judged.{model}.win_rate",
                    above=0,
                ),
            )
        ),
        "All sizes have the recipe's learning rates. Of the smaller SFTs the last checkpoint answers, and of the "
        "largest the one that the reward model chose.",
    ),
    Claim(
        "e",
        "3.5, C.1",
        "SFT overfits on validation loss after one epoch, but more epochs raise both reward and preference.",
        "no figures",
        (
            _end("loss, end − first epoch", "demonstration_loss", "sft_epochs.sft", "sft_epochs.sft.first", above=0),
            *(
                Part(f"{name}, end − first epoch", f"{_EPOCHS}.sft.{key}", f"{_EPOCHS}.sft_first.{key}", above=0)
                for name, key in (("reward", "reward"), ("win rate", "win_rate"))
            ),
        ),
        "The loss is that on validation demonstrations.",
    ),
    Claim(
        "f",
        "3.5, C.2",
        "A reward model overfits if the pairs of a prompt are shuffled into the data set, and after more epochs; a "
        "learning rate 50 % higher or lower makes little difference.",
        "no figures",
        (
            _end(
                "validation loss after one epoch, shuffled pairs − all pairs of a prompt together",
                "validation_loss",
                "reward_pairs.reward",
                "reward_once.reward",
                above=0,
            ),
            _end(
                "validation loss, 8 epochs − 1 epoch",
                "validation_loss",
                "reward_long.reward",
                "reward_once.reward",
                above=0,
            ),
            *(
                _end(
                    f"accuracy, learning rate {change} 50 % − unchanged",
                    "validation_accuracy",
                    f"{arm}.reward",
                    "reward_fifth.reward",
                    above=-0.01,
                    below=0.01,
                )
                for change, arm in (("+", "reward_high"), ("−", "reward_low"))
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
            _models("text loss, PPO − GPT", "pretrain_loss", "ppo", "gpt", above=0.01),
            _models("text loss, PPO-ptx − PPO", "pretrain_loss", "ppo_ptx", "ppo", below=-0.01),
            *(
                _end(
                    f"{name}, gamma x 10 − gamma / 10",
                    metric,
                    "ptx_gamma_10.ppo_ptx",
                    "ptx_gamma_01.ppo_ptx",
                    below=below,
                )
                for name, metric, below in (("text loss", "text_loss", -0.01), ("reward", "validation_reward", 0))
            ),
            Part(
                "text loss, PPO with KL coefficient 2 − GPT",
                "ppo_kl_2.ppo.end.text_loss",
                f"{_MODELS}.gpt.pretrain_loss",
                above=0.01,
            ),
            _end(
                "reward, PPO with KL coefficient 2 − PPO-ptx",
                "validation_reward",
                "ppo_kl_2.ppo",
                "base.ppo_ptx",
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
        tuple(
            _end(f"true quality, {kl} − the recipe's", "true_quality", f"ptx_kl_{kl}.ppo_ptx", "base.ppo_ptx", below=0)
            for kl in (0, 2)
        ),
        "The recipe's coefficient is .07 and the paper's .02.",
    ),
    Claim(
        "i",
        "E.9, Figure 38",
        "Large learning rates diverge without ptx, and do not with it.",
        "at 1.3B, of rates from 2.55e-6 to 2.55e-5, those above 8.05e-6 diverged without ptx",
        (
            _end(
                "true quality without ptx, end − start, rate x 10",
                "true_quality",
                "ppo_rate_10.ppo",
                "ppo_rate_10.ppo.start",
                below=0,
            ),
            _end(
                "true quality with ptx, end − start, rate x 10",
                "true_quality",
                "ptx_rate_10.ppo_ptx",
                "ptx_rate_10.ppo_ptx.start",
                above=0,
            ),
        ),
        "Half of the iterations. Diverged: the answers are worse than at the start. An arm that stops with an error "
        "counts as last measured. The policy's rate grows, not the value network's.",
        ("ppo_rate_3", "ptx_rate_3"),
    ),
    Claim(
        "j",
        "4.1, Figure 4",
        "PPO models hallucinate less than GPT, and more often satisfy constraints, attempt the correct instruction and "
        "are appropriate for a customer assistant.",
        "hallucination on closed-domain tasks: GPT .41, PPO-ptx .21",
        (
            *(
                _models(f"hallucination, PPO-ptx − {name}", "metadata.hallucination", "ppo_ptx", model, below=0)
                for name, model in (("GPT", "gpt"), ("prompted GPT", "gpt_prompted"))
            ),
            _models(
                "satisfies the constraint, PPO-ptx − GPT", "metadata.satisfies_constraint", "ppo_ptx", "gpt", above=0
            ),
            _models(
                "fails the instruction, PPO-ptx − GPT", "metadata.fails_correct_instruction", "ppo_ptx", "gpt", below=0
            ),
            _models(
                "inappropriate, PPO-ptx − GPT",
                "metadata.inappropriate_for_customer_assistant",
                "ppo_ptx",
                "gpt",
                below=0,
            ),
        ),
        "Rates over all test prompts. GPT seldom answers here: it continues with other prompts, which state nothing "
        "that could be false.",
    ),
    Claim(
        "k",
        "4.1, C.5, Figure 5",
        "Models fine-tuned on public tasks (FLAN, T0) are worse than SFT, and PPO-ptx is preferred to them.",
        "win rate against SFT: FLAN .298 ± .02, T0 .268 ± .02, 175B PPO-ptx .734 ± .02",
        tuple(
            part
            for name, arm in (("FLAN", "flan"), ("T0", "t0"))
            for part in (
                Part(f"win rate of {name}, against SFT", f"{arm}.judged.sft_best.win_rate", below=0.5),
                Part(f"win rate, PPO-ptx − {name}", _win_rate("ppo_ptx"), f"{arm}.judged.sft_best.win_rate", above=0),
            )
        ),
        "Fine-tuned on questions, classification and extraction (T0: also on rewriting and others) with the shortest "
        "right answers; the checkpoint is chosen by reward.",
    ),
    Claim(
        "l",
        "C.3, E.8, Figure 37",
        "PPO from an initial policy with 10 % of pretraining data is better than from one with 0 % or 50 %.",
        "Likert about 3.8 at 0 %, 4.0 at 10 % and 3.8 at 50 %",
        tuple(
            _end(
                f"true quality of PPO, 10 % − {share} %",
                "true_quality",
                "base.ppo.middle",
                f"init_text_{share}.ppo",
                above=0,
            )
            for share in (0, 50)
        ),
        "After half of the iterations.",
    ),
    Claim(
        "m",
        "4.1",
        "Reward models predict labelers that they have not learned from only a little worse.",
        "accuracy in 5-fold cross-validation over groups of labelers: .724 ± .004 on the training groups, .696 ± .009 "
        "on the held-out group",
        (Part("accuracy, held-out group − training groups", _folds("heldout"), _folds("learned"), -0.05, 0.01),),
        "A little worse: by up to .05, and not better by .01. Tastes vary less around the common one than people's do.",
    ),
    Claim(
        "n",
        "3.5",
        "Without the KL penalty, PPO over-optimizes the reward model: as the KL grows, proxy and truth part.",
        "with ptx, Likert about 2.1 without the penalty and 3.9 with .02 (Figure 36)",
        (
            _end("KL, without − with the penalty", "validation_kl", "ppo_kl_0.ppo", "base.ppo", above=0),
            _end("reward, without − with the penalty", "validation_reward", "ppo_kl_0.ppo", "base.ppo", above=0),
            _end("true quality, without − with the penalty", "true_quality", "ppo_kl_0.ppo", "base.ppo", below=0),
        ),
        "Without ptx; the penalty is the recipe's .07.",
    ),
    Claim(
        "o",
        "4.1, Figure 3",
        "On prompts written for GPT, too, labelers prefer PPO and PPO-ptx to SFT, and SFT to GPT.",
        "175B models, held-out labelers: GPT about .27, SFT .50, PPO .64, PPO-ptx .62",
        (
            Part("win rate of GPT", "base.prefixed.gpt.win_rate", below=0.5),
            Part("win rate of PPO", "base.prefixed.ppo.win_rate", above=0.5),
            Part("win rate of PPO-ptx", "base.prefixed.ppo_ptx.win_rate", above=0.5),
        ),
        "A prompt for GPT is here the few-shot prefix that the reward model chose for prompted GPT, followed by the "
        "test prompt, for all models. Win rates are against SFT behind the same prefix.",
    ),
)
