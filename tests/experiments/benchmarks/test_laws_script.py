"""The cases of experiments/benchmarks/laws.py, what its results say of curves of known laws, and its page."""

import dataclasses
import json
import types

import numpy as np
import pytest
from benchmarks import laws, laws_page, laws_results

from instructjax import records
from instructjax.errors import DataError
from instructjax.evaluation import overoptimization
from instructjax.evaluation.law_bootstrap import Curve
from instructjax.evaluation.overoptimization import Fit, best_of_n_kl
from instructjax.records import Ranking
from instructjax.reporting import law_figures
from instructjax.runs import checkpoint, metrics_file
from instructjax.sandbox.quality import quality
from tests.scripts import Left, run

PROMPTS = [f"prompt {i}" for i in range(30)]
PARAMETERS = {"2x32": 2**16, "2x64": 2**17, "2x128": 2**19}
NUMBERS = (1, 2, 3, 4, 6, 8, 16, 32, 64)
CASES = laws.cases(list(PARAMETERS), [500, 1_000, 2_000], [0.0, 0.05, 0.1])


def known(arm):
    """The coefficients of a case: linear in the logarithms, and without a fall for exact labels."""
    alpha = 0.01 * np.log2(PARAMETERS[arm.size]) + 0.02 * np.log2(arm.comparisons / 500)
    return alpha, 0.0 if arm.labels == "exact" else 0.1


def curve(law, alpha, beta, kl):
    """A curve of a law in the mean over prompts, which differ."""
    noise = 0.05 * np.random.default_rng(0).normal(size=(len(kl), len(PROMPTS))) * (kl > 0)[:, None]
    gold = np.linspace(0, 1, len(PROMPTS)) + noise - noise.mean(1, keepdims=True)
    gold += Fit(law, alpha, beta, 1.0).predict(kl)[:, None]
    return Curve(np.repeat(kl[:, None], len(PROMPTS), axis=1), 2 * gold, gold)


@pytest.fixture(scope="module")
def results():
    """Results of known laws, but the largest KL coefficient gives less than the others at equal KL."""
    curves, described = {}, []
    for arm in CASES:
        alpha, beta = known(arm)
        far = np.linspace(0, 9 if arm.kl_coefficient == 0 else 4, 40)
        ppo = curve("rl", alpha, beta, far)
        if arm.kl_coefficient == 0.1:
            ppo = dataclasses.replace(ppo, gold=ppo.gold - 0.05 * (far > 0)[:, None])
        best = curve("best of n", alpha, beta, np.array([best_of_n_kl(n) for n in NUMBERS]))
        curves[arm.name] = {"best of n": best, "ppo": ppo}
        described.append(
            dataclasses.asdict(arm) | {"name": arm.name, "parameters": PARAMETERS[arm.size], "accuracy": 0.7}
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laws_results, "DRAWS", 100)
        return laws_results.analyze(described, curves, PROMPTS)


def test_every_reward_model_has_its_case():
    names = [arm.name for arm in CASES]
    assert len(names) == len(set(names)) == 9 + 3 + 2
    assert names[0] == "2x32-500-noisy-kl0" and names[-1] == "2x128-2000-noisy-kl0.1"
    assert [name for name in names if "exact" in name] == [f"2x128-{n}-exact-kl0" for n in (500, 1_000, 2_000)]
    assert {arm.reward_model for arm in CASES if arm.kl_coefficient} == {"2x128-2000-noisy"}


@pytest.mark.parametrize("labels, expected", [("noisy", [(2.0, 1.0), (1.0, 2.0)]), ("exact", [(1.0, 3.0)])])
def test_a_case_learns_from_the_first_rankings(labels, expected):
    """The true quality of an answer is its length here, and two answers of the same length tie."""
    source = types.SimpleNamespace(measure=lambda prompts, texts: {laws.TRUE: float(len(texts[0]))})
    run = types.SimpleNamespace(source=source, data_folder="data")
    found = [
        Ranking(prompt="p", responses=responses, scores=scores)
        for responses, scores in ((("a", "b"), (2.0, 1.0)), (("a", "bbb"), (1.0, 2.0)), (("a", "bb"), (1.0, 2.0)))
    ]
    choose = laws.chooser(run, laws.Case("2x32", 2, labels, 0.0))
    assert [one.scores for one in choose(found, 0)] == expected
    with pytest.raises(DataError, match="--comparisons: expected at most the 1 training rankings of data, found 2"):
        choose(found[:1], 0)


def test_a_curve_of_best_of_n_is_that_of_the_estimator():
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(2, 5, 16))
    found = laws.best_of_n_curve(proxy, gold)
    assert found.kl.shape == (8, 5)  # n = 1, 2, 3, 4, 6, 8, 12 and 16
    np.testing.assert_allclose(found.kl[-1], best_of_n_kl(16))
    np.testing.assert_allclose(found.gold[0], gold.mean(1))
    np.testing.assert_allclose(found.gold[-2], overoptimization.best_of_n(proxy, gold, 12))
    np.testing.assert_allclose(found.proxy[-1], proxy.max(1))


def test_known_laws_are_found_with_their_trends(results):
    for arm, found in zip(CASES, results["arms"], strict=True):
        alpha, beta = known(arm)
        for method, law in overoptimization.LAWS.items():
            fit = found[method]["fits"][law]
            if arm.kl_coefficient != 0.1:
                assert (fit["alpha"]["mean"], fit["beta"]["mean"]) == pytest.approx((alpha, beta), abs=1e-5)
                assert fit["r_squared"] == pytest.approx(1) and found[method]["extrapolation"]["predicted"] == (
                    pytest.approx(found[method]["extrapolation"]["measured"], abs=1e-5)
                )
    for trend in results["trends"].values():
        assert trend["alpha"]["parameters"]["mean"] == pytest.approx(0.01, abs=1e-5)
        assert trend["alpha"]["comparisons"]["mean"] == pytest.approx(0.02, abs=1e-5)
        for one in trend["unseen"]:
            assert one["name"].startswith("2x128") and one["predicted"] == pytest.approx(one["measured"], abs=1e-5)


def test_only_the_penalty_that_changes_the_curve_is_told_apart(results):
    same, lower = results["penalty"]
    assert (same["kl_coefficient"], lower["kl_coefficient"]) == (0.05, 0.1)
    assert same["gap"]["mean"] == pytest.approx(0, abs=2e-3)  # of linear interpolation
    assert lower["gap"]["mean"] == pytest.approx(-0.05, abs=2e-3) and lower["adjusted_p_value"] < 0.05


def test_exact_labels_have_no_fall_and_noisy_ones_have(results):
    assert [row["comparisons"] for row in results["noise"]] == [500, 1_000, 2_000]
    for row in results["noise"]:
        alpha, _ = known(next(arm for arm in CASES if arm.name == row["noisy"]))
        for method, law in overoptimization.LAWS.items():
            noisy, exact = (Fit(law, alpha, beta, 1.0) for beta in (0.1, 0.0))
            kl = row[method]["kl"]
            assert kl == pytest.approx(9.0 if method == "ppo" else best_of_n_kl(64), abs=1e-5)
            assert row[method]["exact"]["mean"] == pytest.approx(0, abs=1e-6)
            expected = noisy.predict(np.array([min(noisy.peak, kl), kl]))
            assert row[method]["difference"]["mean"] == pytest.approx(expected[0] - expected[1], abs=2e-3)
            at = np.linspace(0, 9, 40)[1:] if method == "ppo" else np.array([best_of_n_kl(n) for n in NUMBERS[1:]])
            assert row[method]["gap"]["mean"] == pytest.approx((exact.predict(at) - noisy.predict(at)).mean(), abs=1e-5)


def test_a_page_has_the_tables_between_its_marks(results):
    page = laws_page.filled("before\n" + "stale".join(laws_page.MARKS) + "\nafter", json.loads(json.dumps(results)))
    assert page.startswith("before\n") and page.endswith("\nafter") and "stale" not in page
    assert "| 2x128 | 2,000 | 9.00 |" in page and "9 of 9 gains at the largest KL lie inside" in page
    assert "| 2x128 | 524,288 | 500 | exact | 0.700 |" in page
    assert "1 of 2 penalties give another curve." in page
    assert laws_page.filled(page, results) == page


def test_the_figures_have_a_panel_for_each_size_and_question(results):
    figure = law_figures.gold_and_proxy(results)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [f"{kind}{size}" for kind in ("best of n, ", "PPO, ", "PPO's reward, ") for size in PARAMETERS]
    penalty, labels = law_figures.questions(results).axes
    assert [line.get_label() for line in penalty.get_lines()] == [
        f"KL coefficient {beta}" for beta in ("0", "0.05", "0.1")
    ]
    assert len(labels.get_lines()) == 6


def test_too_few_points_for_a_law_are_told_before_anything_is_trained(tmp_path):
    message = "^error: --every: expected at most --iterations / 3 = 1, because a law needs 3 points, found 2$"
    with pytest.raises(Left, match=message):
        run("benchmarks/laws.py", f"--workdir={tmp_path / 'run'}", "--iterations=5", "--every=2")
    assert not list((tmp_path / "run").glob("*/*"))


@pytest.mark.slow
def test_arms_are_trained_once_and_measured_from_their_folders(tmp_path):
    """Two sizes, with exact labels and a KL penalty. A rate that is too large moves PPO in a few iterations."""
    flags = [
        "--config=configs/sandbox.py:smoke",
        f"--workdir={tmp_path}",
        "--sizes=2x32,2x64",
        "--comparisons=60",
        "--kl=0.0,0.1",
        "--iterations=6",
        "--every=1",
        "--prompts=30",
        "--samples=12",
        "--config.ppo.ema_decay=0.0",
        "--config.ppo.warmup_iterations=0",
        "--config.ppo.learning_rate=0.002",
        "--config.log.every=10",
    ]
    printed = run("benchmarks/laws.py", *flags)
    written = (tmp_path / "laws.json").read_text()
    results = json.loads(written)
    names = ["2x32-60-noisy-kl0", "2x64-60-noisy-kl0", "2x64-60-exact-kl0", "2x64-60-noisy-kl0.1"]
    assert [arm["name"] for arm in results["arms"]] == names and all(name in printed for name in names)
    small, large, exact = (tmp_path / "arms" / name for name in names[:3])
    penalized = large / "arms" / names[3]
    assert results["arms"][0]["parameters"] < results["arms"][1]["parameters"]
    assert checkpoint.fingerprint(penalized / "reward" / "checkpoints") == (
        checkpoint.fingerprint(large / "reward" / "checkpoints")
    )
    noisy, true = (
        [one for one in records.read(arm / "data" / "rankings.jsonl", Ranking) if one.split == "train"]
        for arm in (large, exact)
    )
    by_answers = {(one.prompt, one.responses): one.scores for one in true}
    assert {(one.prompt, one.responses) for one in noisy} >= by_answers.keys()
    for (prompt, responses), scores in by_answers.items():
        assert scores == pytest.approx([quality(prompt, response) for response in responses])
    for arm, found in zip((small, large, exact, penalized), results["arms"], strict=True):
        measured = [line for line in metrics_file.read(arm / "ppo" / "metrics.jsonl") if "validation_kl" in line][1:]
        for line, point in zip(measured, found["ppo"]["points"][1:], strict=True):
            assert point["gold"] == pytest.approx(line["true_quality"], abs=1e-5)
            assert point["proxy"] == pytest.approx(line["validation_reward"], abs=1e-4)
            assert point["kl"] == pytest.approx(max(line["validation_kl"], 0), abs=1e-4)
    trained = {path: path.stat().st_mtime for path in tmp_path.rglob("summary.json")}
    assert run("benchmarks/laws.py", *flags).splitlines()[-8:] == printed.splitlines()[-8:]
    assert {path: path.stat().st_mtime for path in tmp_path.rglob("summary.json")} == trained
    assert (tmp_path / "laws.json").read_text() == written
