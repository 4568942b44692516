"""The figures of the claims show each arm's numbers where the paper's figure has them, and are drawn without any."""

import pytest
from matplotlib.container import ErrorbarContainer

from instructjax.reporting import claims_figures
from instructjax.reporting.claims_figures import estimate

FIGURES = (
    claims_figures.figure_1,
    claims_figures.figure_3,
    claims_figures.figure_4,
    claims_figures.figure_5,
    claims_figures.figure_7,
    claims_figures.sweeps,
    claims_figures.overoptimization,
)


def seed(number):
    """Returns the results of a seed, in which numbers differ by place, and by .01 from seed to seed."""
    shift = 0.01 * number

    def model(win_rate):
        rates = {"training": {"mean": win_rate - 0.1}, "heldout": {"mean": win_rate + shift}}
        flags = {"hallucination": 0.3, "sexual_content": 0.02, "harmful_advice": 0.04}
        return {"win_rate_vs_sft": rates, "metadata": flags}

    def curve(quality, loss):
        steps = ((0, 0.0), (10, 1.0), (20, 2.0))
        return [
            {
                "step": step,
                "validation_kl": kl,
                "validation_reward": kl,
                "true_quality": quality + shift,
                "text_loss": loss,
            }
            for step, kl in steps
        ]

    models = {"gpt": model(0.2), "sft": model(0.5), "ppo_ptx": model(0.7)}
    return {
        "seed": number,
        "base": {
            "results": {"models": models},
            "prefixed": {"ppo_ptx": {"win_rate": 0.65}},
            "ppo": curve(0.5, 0.9),
            "ppo_ptx": curve(0.6, 0.8),
        },
        "size_quarter": {"judged": {"pretrain": {"win_rate": 0.1}, "ppo_ptx": {"win_rate": 0.4}}},
        "flan": {"judged": {"sft_best": {"win_rate": 0.25}}},
        "ppo_kl_0": {"ppo": curve(0.3, 1.0)},
        "ptx_kl_2": {"ppo_ptx": curve(0.4, 0.7)},
        "ppo_rate_10": {"ppo": curve(0.1, 1.5)},
    }


def marks(axes):
    """Returns the places (x, y) of the estimates."""
    found = [container[0] for container in axes.containers if isinstance(container, ErrorbarContainer)]
    return {(round(float(mark.get_xdata()[0]), 2), round(float(mark.get_ydata()[0]), 3)) for mark in found}


def test_estimates_pool_the_seeds_that_have_a_number():
    path = "base.results.models.ppo_ptx.win_rate_vs_sft.heldout.mean"
    found = estimate([seed(0), seed(1), {"seed": 2}], path)
    assert found == pytest.approx({"mean": 0.705, "low": 0.7, "high": 0.71})
    assert estimate([seed(0)], "base.ppo.end.entropy") is None


def test_figure_1_has_the_arms_of_smaller_sizes_before_the_run_itself():
    (axes,) = claims_figures.figure_1([seed(0)]).axes
    assert marks(axes) == {(0, 0.1), (0, 0.4), (2, 0.2), (2, 0.5), (2, 0.7)}


def test_figure_3_tells_labelers_and_prompts_apart():
    training, heldout, prefixed = claims_figures.figure_3([seed(0)]).axes
    assert {y for _, y in marks(training)} == {0.1, 0.4, 0.6}
    assert {y for _, y in marks(heldout)} == {0.2, 0.5, 0.7}
    assert {y for _, y in marks(prefixed)} == {0.65}


def test_figure_5_stands_next_to_the_text_of_the_paper():
    (axes,) = claims_figures.figure_5([seed(0)]).axes
    assert marks(axes) == {(-0.08, 0.25), (1.92, 0.7)}
    stated = [line for line in axes.lines if line.get_marker() == "D"]
    assert [float(line.get_ydata()[0]) for line in stated] == [0.298, 0.268, 0.734]


def test_sweeps_compare_arms_with_the_run_after_as_many_iterations():
    quality, text, gamma, _, rates, _ = claims_figures.sweeps([seed(0), seed(2)]).axes
    assert marks(quality) == {(0, 0.31), (1, 0.51), (1, 0.61), (2, 0.41)}
    assert marks(text) == {(0, 1.0), (1, 0.9), (1, 0.8), (2, 0.7)}
    assert marks(gamma) == {(1, 0.8)}
    longer = seed(0)
    longer["base"]["ppo"][1]["true_quality"] = 0.45  # at half of the steps
    *_, rates, _ = claims_figures.sweeps([longer]).axes
    assert {(0, 0.45), (2, 0.1)} <= marks(rates)


def test_overoptimization_has_a_line_per_arm_and_seed():
    reward, quality = claims_figures.overoptimization([seed(0), seed(1)]).axes
    assert len(reward.lines) == len(quality.lines) == 4
    assert list(quality.lines[0].get_xdata()) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__name__)
def test_it_is_drawn_without_results(draw):
    assert draw([]).get_figure() is not None
