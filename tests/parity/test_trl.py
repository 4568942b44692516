"""Parity of the PPO equations with TRL 1.12, the last release with a PPO trainer.

Its trainer is one long method, so the test runs the lines between two comments of the installed source. If
TRL is not installed, numbers recorded from it are used instead.
"""

import ast
import functools
import inspect
import math
import textwrap
import types

import jax
import numpy as np
import pytest

from instructjax import losses
from tests import local_data

SETTINGS = {
    "k1": {},
    "k3": {"kl_estimator": "k3"},
    "whiten_rewards": {"whiten_rewards": True},
    "penalty": {"missing_eos_penalty": 1.0},
    "full_length": {},
    "gamma": {"gamma": 0.9, "lam": 0.8},
}
DEFAULT = {"kl_estimator": "k1", "whiten_rewards": False, "missing_eos_penalty": None, "gamma": 1.0, "lam": 0.95}
DEFAULT |= {"kl_coef": 0.05, "cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", SETTINGS)
def test_numbers_from_trl(name):
    """Reads files `ppo_case_NAME.npz` with the settings, and arrays in_* and out_*.

    They were recorded with TRL 1.12.0 and torch 2.13.0, from seeded random numbers, as in `run_trl`.
    """
    path = local_data.TRL_PARITY / f"ppo_case_{name}.npz"
    if not path.is_file():
        pytest.skip(local_data.ABSENT)
    case = dict(np.load(path))
    errors = compare(case, ast.literal_eval(str(case["cfg"][0])))
    print(f"largest difference {max(errors):.1e}", end=" ")


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SETTINGS)
def test_trl_itself(name, seed, capsys):
    setting = DEFAULT | SETTINGS[name]
    errors = compare(run_trl(setting, seed, always_full=name == "full_length"), setting)
    with capsys.disabled():
        print(f"\n  PPO of TRL, {name}, seed {seed}: largest difference {max(errors):.1e}", end="")


def run_trl(setting, seed, *, always_full, rows=6, width=10):
    """Runs random responses through the lines of TRL's trainer. Returns arrays in_* and out_* as in the files."""
    torch = pytest.importorskip("torch", reason="needs the extra parity")
    trainer = pytest.importorskip("trl.experimental.ppo.ppo_trainer", reason="needs the extra parity")
    source = inspect.getsource(trainer.PPOTrainer.train)
    pad, eos = 99, 0
    rng = np.random.default_rng(seed)
    responses = rng.integers(1, 50, (rows, width))
    if not always_full:  # an end in every row but one
        responses[np.arange(rows - 1), rng.integers(0, width, rows - 1)] = eos
    responses = torch.tensor(responses)
    post = trainer.truncate_response(eos, pad, responses)

    def normal(scale=1.0):
        return torch.tensor(scale * rng.normal(size=(rows, width)), dtype=torch.float32)

    log_probs = -2 + normal(0.3)
    inputs = {"logprobs": log_probs, "ref_logprobs": log_probs + normal(0.2), "values": normal()}
    inputs |= {"scores": torch.tensor(rng.normal(size=rows), dtype=torch.float32)}
    changed = {"new_logprobs": inputs["logprobs"] + normal(0.25), "vpred": inputs["values"] + normal(0.4)}
    arguments = types.SimpleNamespace(**setting)
    names = {
        **{name: tensor.clone() for name, tensor in inputs.items()},
        "torch": torch,
        "args": arguments,
        "self": types.SimpleNamespace(args=arguments, processing_class=types.SimpleNamespace(eos_token_id=eos)),
        "masked_whiten": trainer.masked_whiten,
        "masked_mean": trainer.masked_mean,
        "INVALID_LOGPROB": trainer.INVALID_LOGPROB,
        "responses": responses,
        "postprocessed_responses": post,
        "sequence_lengths": torch.where(post == pad, 1, 0).argmax(1) - 1,
    }
    names["sequence_lengths"][~(post == pad).any(1)] = width - 1
    for first, end in (
        ("contain_eos_token = torch.any", "# 4. compute rewards"),
        ("logr = ref_logprobs - logprobs", "# 5. whiten rewards"),
        ("if args.whiten_rewards:", "# 6. compute advantages"),
        ("lastgaelam = 0", "advantages = torch.masked_fill(advantages, padding_mask, 0)"),
    ):
        exec(lines_of(source, first, end, inclusive=first == "lastgaelam = 0"), names)
    names["raw_advantages"] = torch.stack(names["advantages_reversed"][::-1], axis=1)
    names |= {
        "micro_batch_inds": torch.arange(rows),
        "mb_advantage": names["advantages"],
        "mb_logprobs": names["logprobs"],
        "mb_return": names["returns"],
        "mb_values": names["values"],
        "new_logprobs": changed["new_logprobs"].clone(),
        "vpred_temp": torch.cat([torch.zeros(rows, 3), changed["vpred"], torch.zeros(rows, 1)], 1).unsqueeze(-1),
        "context_length": 4,
    }
    exec(
        lines_of(
            source, "new_logprobs = torch.masked_fill(", "loss = pg_loss + args.vf_coef * vf_loss", inclusive=True
        ),
        names,
    )
    outputs = "rewards returns advantages raw_advantages padding_mask padding_mask_p1 actual_end non_score_reward"
    outputs = (*outputs.split(), "pg_loss", "vf_loss", "vf_clipfrac", "sequence_lengths")
    return {
        **{f"in_{name}": tensor.numpy() for name, tensor in (inputs | changed).items()},
        **{f"out_{name}": names[name].numpy() for name in outputs},
        "out_scores_after_penalty": names["scores"].numpy(),
    }


def lines_of(source, first, end, *, inclusive):
    """Returns the lines from the one with `first` to the one with `end`."""
    start = source.rindex("\n", 0, source.index(first)) + 1
    stop = source.index(end, start)
    stop = source.index("\n", stop) if inclusive else source.rindex("\n", 0, stop)
    return textwrap.dedent(source[start : stop + 1])


def compare(case, setting):
    """Compares our equations with TRL's numbers, and returns the largest differences.

    Where the two differ on purpose, this applies TRL's convention before the comparison:
    - TRL puts the score one position after EOS, and counts value and return there;
      here both end with the last token, as the paper's episode does.
    - TRL's variance is unbiased, n - 1; here it is divided by n, as in the authors'
      earlier code.
    - TRL offers the k3 estimator of KL; the paper's reward is log π - log π_ref (k1).
    - TRL can whiten rewards and penalize a missing EOS internally; here the caller does.
    """
    errors = []

    def agree(found, expected):
        errors.append(float(np.abs(np.asarray(found) - expected).max()))
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=4e-6)  # TRL computed in float32

    case = {key: np.asarray(x, np.float64) if x.dtype == np.float32 else x for key, x in case.items()}
    log_probs, values, scores = case["in_logprobs"], case["in_values"], case["out_scores_after_penalty"]
    mask, wider_mask = ~case["out_padding_mask"], ~case["out_padding_mask_p1"]

    if setting["kl_estimator"] == "k1":
        kl_rewards = functools.partial(losses.kl_rewards, beta=setting["kl_coef"], mask=mask)
        penalty = kl_rewards(np.zeros_like(scores), log_probs, case["in_ref_logprobs"])
        agree(penalty, case["out_non_score_reward"])
        if not setting["whiten_rewards"]:
            rewards = kl_rewards(scores, log_probs, case["in_ref_logprobs"])
            agree(rewards.sum(1), case["out_rewards"].sum(1))
            full = case["out_actual_end"] == case["out_sequence_lengths"]  # no place after the last token
            agree(rewards[full], case["out_rewards"][full])
        else:
            at_end = np.arange(mask.shape[1]) == case["out_actual_end"][:, None]
            raw = penalty + at_end * scores[:, None]
            mean, _ = losses.masked_moments(raw, wider_mask)
            unbiased = math.sqrt(1 - 1 / wider_mask.sum())
            whitened = losses.whiten(raw, wider_mask, shift_mean=False)
            agree(np.where(wider_mask, (whitened - mean) * unbiased + mean, 0), case["out_rewards"])

    advantages, returns = losses.gae(case["out_rewards"], values, wider_mask, setting["gamma"], setting["lam"])
    agree(advantages, case["out_raw_advantages"])
    agree(returns, case["out_returns"])
    agree(losses.whiten(advantages, mask) * math.sqrt(1 - 1 / mask.sum()), case["out_advantages"])

    pair, _ = losses.policy_loss(case["in_new_logprobs"], log_probs, case["out_advantages"], mask, setting["cliprange"])
    agree(losses.mean(*pair), case["out_pg_loss"])
    pair, metrics = losses.value_loss(
        case["in_vpred"], values, case["out_returns"], wider_mask, setting["cliprange_value"]
    )
    agree(losses.mean(*pair), case["out_vf_loss"])
    agree(losses.mean(*metrics["clip_fraction"]), case["out_vf_clipfrac"])
    return errors
