"""Measures the laws of over-optimization (Gao et al. 2022) over sizes of reward model and amounts of comparisons.

    python experiments/benchmarks/laws.py --workdir=runs/laws [--base=runs/sandbox]

One GPT, one SFT and one initial policy answer, and one collection of comparisons is ranked. A reward model of each of
--sizes learns from each of --comparisons, the first ones of the same collection, starting from a GPT and SFT of its own
size. Two questions have arms of their own: labels without noise, which rank the same answers by their true quality, and
other KL coefficients against the same reward model. See docs/overoptimization.md.

Best of n chooses from one pool of answers of the initial policy for all reward models. PPO starts from this policy, and
answers the same prompts every --every iterations. The true quality of every answer is known.

Every case is an arm of the run, in WORKDIR/arms; other KL coefficients are arms of the arm with their reward model.
Finished stages are not trained again: run the same command to resume, and to compute the results again. Writes
WORKDIR/laws.json; laws_page.py makes tables and figures of it. --base names a run of the same recipe whose GPT, SFT and
initial policy are taken instead of trained.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from absl import flags

from instructjax import files
from instructjax.errors import ConfigError, DataError
from instructjax.evaluation import overoptimization
from instructjax.evaluation.law_bootstrap import Curve
from instructjax.models import sizes
from instructjax.records import Prompt, Ranking
from instructjax.runs import checkpoint, folder, samples_file
from instructjax.stages import answers, arms, comparisons, copying, ppo, ppo_init, pretrain, reward, rewards, sft
from instructjax.stages.answers import Sampling
from instructjax.stages.arms import Arm
from instructjax.stages.run import Run
from instructjax.training import parallel

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # as for the scripts of experiments/

import command_line

from benchmarks import laws_results

_BASE = flags.DEFINE_string("base", "", "A run whose GPT, SFT and initial policy are taken; by default WORKDIR's own.")
_SIZES = flags.DEFINE_list("sizes", ["2x32", "2x64", "2x128"], "Reward models, LAYERSxWIDTH; the last the policy's.")
_COMPARISONS = flags.DEFINE_list("comparisons", ["600", "1200", "2400", "4800"], "Rankings that one learns from.")
_KL = flags.DEFINE_list("kl", ["0.0", "0.02", "0.07"], "KL coefficients of PPO; all reward models have the first.")
_ITERATIONS = flags.DEFINE_integer("iterations", 60, "PPO iterations of a case.", lower_bound=1)
_EVERY = flags.DEFINE_integer("every", 3, "Iterations between measurements.", lower_bound=1)
_PROMPTS = flags.DEFINE_integer("prompts", 256, "The first prompts of the validation split.", lower_bound=2)
_SAMPLES = flags.DEFINE_integer("samples", 64, "Answers to each prompt, and the largest n.", lower_bound=8)

TRUE = "true_quality"  # the metric that `Source.measure` gives where the truth is known
SHARED = (pretrain.run, sft.run, ppo_init.run)
FEWEST = 3  # points after the initial policy that two coefficients do not always fit
IN_A_ROW = 8  # answers that are scored in one packed row, whose attention grows with their number squared


@dataclasses.dataclass(frozen=True)
class Case:
    """A reward model, and what PPO trains against it.

    Attributes:
      size: of the reward model and the value network.
      comparisons: rankings that it learns from.
      labels: "noisy" ones of the simulated labelers, or "exact" ones by the true quality.
      kl_coefficient: of PPO.
    """

    size: str
    comparisons: int
    labels: Literal["noisy", "exact"]
    kl_coefficient: float

    @property
    def reward_model(self) -> str:
        """The name of the reward model."""
        return f"{self.size}-{self.comparisons}-{self.labels}"

    @property
    def name(self) -> str:
        """The name of its arm."""
        return f"{self.reward_model}-kl{self.kl_coefficient:g}"


def main(run: Run) -> None:
    """Trains and measures all cases, and writes the results."""
    if _ITERATIONS.value // _EVERY.value < FEWEST:
        raise ConfigError(
            f"--every: expected at most --iterations / {FEWEST} = {_ITERATIONS.value // FEWEST}, because a law needs "
            f"{FEWEST} points, found {_EVERY.value}"
        )
    all_cases = cases(_SIZES.value, [int(count) for count in _COMPARISONS.value], [float(value) for value in _KL.value])
    asked = run.records(Prompt, "validation")[: _PROMPTS.value]
    if TRUE not in run.source.measure([asked[0].prompt], [""]):
        raise ConfigError("--config: expected a source that knows the true quality, such as the sandbox, found none")
    train_shared(run)
    starts = {size: sized(run, size) for size in _SIZES.value}
    pool = sample_pool(run, asked)
    gold = true_quality(run, asked, pool)
    curves: dict[str, dict[str, Curve]] = {}
    described: list[dict[str, Any]] = []
    for case in all_cases:
        one = train(run, case, starts[case.size])
        proxy = score_pool(one, asked, pool)
        start = Curve(np.zeros((1, len(asked))), proxy.mean(1)[None], gold.mean(1)[None])
        curves[case.name] = {"best of n": best_of_n_curve(proxy, gold), "ppo": ppo_curve(one, asked, start)}
        described.append(describe(case, starts[case.size], overoptimization.pair_accuracy(proxy, gold)))
        jax.clear_caches()  # each case compiles its own programs, and keeps their memory
    results = laws_results.analyze(described, curves, [record.prompt for record in asked])
    files.write_json(run.workdir / "laws.json", results)
    print("\n".join(laws_results.lines(results)))


def cases(sizes: Sequence[str], counts: Sequence[int], coefficients: Sequence[float]) -> list[Case]:
    """Returns all sizes with all amounts, exact labels for the last size, and other coefficients for the last case."""
    first, *others = coefficients
    return [
        *(Case(size, count, "noisy", first) for size in sizes for count in counts),
        *(Case(sizes[-1], count, "exact", first) for count in counts),
        *(Case(sizes[-1], counts[-1], "noisy", other) for other in others),
    ]


def train_shared(run: Run) -> None:
    """Trains or takes over the models that all cases start from, and collects the comparisons."""
    base = Run(run.config, _BASE.value, run.recipe) if _BASE.value else None
    for stage in SHARED:
        if base is None:
            stage(run)
        else:
            copying.copy_stage(base, run, stage)
    comparisons.collect(run)


def sized(run: Run, size: str) -> Run:
    """Returns the run with the GPT and SFT that reward models of a size start from, and trains them."""
    network = sizes.resized(run.policy_config, size)
    if network == run.policy_config:
        return run
    shape = {f"model.{name}": getattr(network, name) for name in ("num_layers", "d_model", "num_heads", "d_ff")}
    return arms.train(run, Arm(size, (pretrain.run, sft.run), shape))


def train(run: Run, case: Case, start: Run) -> Run:
    """Trains the reward model and the policy of a case, and returns its run.

    Args:
      run: the run with the initial policy and the comparisons.
      case: what to train.
      start: the run with the SFT that the reward model starts from.
    """
    owner = dataclasses.replace(case, kl_coefficient=float(_KL.value[0]))
    changes = {
        "reward.size": case.size,
        "reward.init_from": str(start.checkpoints("sft")),
        **ppo_changes(),
        "ppo.kl_coefficient": owner.kl_coefficient,
    }
    arm = Arm(owner.name, (reward.run, ppo.run), changes, records={Ranking: chooser(run, case)})
    trained = arms.train(run, arm)
    if case == owner:
        return trained
    return arms.train(trained, Arm(case.name, (ppo.run,), {"ppo.kl_coefficient": case.kl_coefficient}))


def ppo_changes() -> Mapping[str, Any]:
    """Returns what the recipe of PPO changes in all cases."""
    return {
        "ppo.iterations": _ITERATIONS.value,
        "ppo.validation_prompts": _PROMPTS.value,
        "ppo.shown_answers": _PROMPTS.value,  # all of them, because intervals are over prompts
        "ppo_log.evaluate_every": _EVERY.value,
        "ppo_log.save_every": _ITERATIONS.value,
        "evaluate.text_windows": 32,  # the loss on text is not a question here
    }


def chooser(run: Run, case: Case) -> Callable[[Sequence[Ranking], int], list[Ranking]]:
    """Returns a function that chooses the first training rankings, and ranks them by true quality for exact labels."""

    def choose(found: Sequence[Ranking], seed: int) -> list[Ranking]:
        if len(found) < case.comparisons:
            raise DataError(
                f"--comparisons: expected at most the {len(found)} training rankings of {run.data_folder}, "
                f"found {case.comparisons}"
            )
        used = list(found[: case.comparisons])
        if case.labels == "noisy":
            return used
        exact = [dataclasses.replace(ranking, scores=exact_scores(run, ranking)) for ranking in used]
        return [ranking for ranking in exact if len(set(ranking.scores)) > 1]

    return choose


def exact_scores(run: Run, ranking: Ranking) -> tuple[float, ...]:
    """Returns the true quality of each answer."""
    return tuple(run.source.measure([ranking.prompt], [response])[TRUE] for response in ranking.responses)


def sample_pool(run: Run, asked: Sequence[Prompt]) -> list[list[str]]:
    """Returns --samples answers of the initial policy to each prompt; they are sampled once."""
    identity = {"policy": checkpoint.fingerprint(run.checkpoints("ppo_init")), "samples": _SAMPLES.value}
    identity |= {"prompts": [record.prompt for record in asked], "temperature": run.config.evaluate.temperature}
    path = run.workdir / "pool.json"
    if files.exists(path) and (found := files.read_json(path))["of"] == identity:
        return found["texts"]
    sampling = Sampling(temperature=run.config.evaluate.temperature, batch_size=run.config.evaluate.batch_size)
    with parallel.on_mesh(run.config.parallel):
        key = jax.random.key(run.config.seed)
        tasks = answers.collect(run, ["ppo_init"], asked, _SAMPLES.value, key, sampling)
    texts = [task["responses"] for task in tasks]
    files.write_json(path, {"of": identity, "texts": texts})
    return texts


def true_quality(run: Run, asked: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns float64[P, N], the true quality of N answers to each prompt."""
    measured = [
        [run.source.measure([record.prompt], [text])[TRUE] for text in row]
        for record, row in zip(asked, texts, strict=True)
    ]
    return np.array(measured)


def score_pool(one: Run, asked: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns float64[P, N], the rewards of the pool by an arm's reward model; they are computed once."""
    identity = {"reward": rewards.identify(one), "pool": folder.digest(json.dumps(texts).encode())}
    path = one.workdir / "pool.json"
    if files.exists(path) and (found := files.read_json(path))["of"] == identity:
        return np.array(found["rewards"])
    together = math.gcd(IN_A_ROW, len(texts[0]))
    parts = [
        (record, row[place : place + together])
        for record, row in zip(asked, texts, strict=True)
        for place in range(0, len(row), together)
    ]
    with parallel.on_mesh(one.config.parallel):
        found = rewards.load(one, "laws").of_texts(*zip(*parts, strict=True)).reshape(len(texts), -1)
    scored = np.asarray(found, np.float64)  # as JSON gives them back
    files.write_json(path, {"of": identity, "rewards": scored.tolist()})
    return scored


def best_of_n_curve(proxy: np.ndarray, gold: np.ndarray) -> Curve:
    """Returns the curve of n = 1, 2, 3, 4, 6, 8, ... up to the size of the pool; both rewards are float[P, N]."""
    size = proxy.shape[1]
    numbers = sorted({n for power in range(size.bit_length()) for n in (2**power, 3 * 2**power) if n <= size})
    kl = [np.full(len(proxy), overoptimization.best_of_n_kl(n)) for n in numbers]
    chosen = [[overoptimization.best_of_n(proxy, measured, n) for n in numbers] for measured in (proxy, gold)]
    return Curve(np.stack(kl), *map(np.stack, chosen))


def ppo_curve(one: Run, asked: Sequence[Prompt], start: Curve) -> Curve:
    """Returns the curve of an arm's policy; its first point is that of the pool, which has more answers."""
    lines = samples_file.read(one.directory("ppo"))
    points = [start]
    for step in sorted({line["step"] for line in lines} - {0}):
        shown = [line for line in lines if line["step"] == step]
        texts = [[line["response"]] for line in shown]
        gold = true_quality(one, asked, texts)[:, 0]
        kl, proxy = (np.array([line[name] for line in shown]) for name in ("kl", "reward"))
        points.append(Curve(*(values[None] for values in (kl, proxy, gold))))
    return Curve(*(np.concatenate(parts) for parts in zip(*map(dataclasses.astuple, points), strict=True)))


def describe(case: Case, start: Run, accuracy: np.ndarray) -> dict[str, Any]:
    """Returns a case as JSON, with the parameters of its reward model and its accuracy on pairs of the pool."""
    parameters = sizes.count_parameters(start.policy_config)
    return {
        **dataclasses.asdict(case),
        "name": case.name,
        "parameters": parameters,
        "accuracy": float(np.nanmean(accuracy)),
    }


if __name__ == "__main__":
    command_line.run(main)
