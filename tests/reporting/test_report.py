import copy
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.reporting import figures, findings, report


def estimate(mean, half=0.03):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 500}


def model(rate, loss):
    return {
        "params": 800_000,
        "true_quality": estimate(0.3 + rate / 2),
        "win_rate_vs_sft": {"training": estimate(rate), "heldout": estimate(rate - 0.02)},
        "likert": 2 + 4 * rate,
        "metadata": {"hallucination": 0.25},
        "pretrain_loss": loss,
        "kl_to_init": 1.25,
        "response_tokens": 12.5,
    }


BINS = [
    {"margin": 0.2, "predicted": 0.55, "right": 0.6, "n": 30},
    {"margin": 2, "predicted": 0.9, "right": 0.8, "n": 29},
]
SANDBOX = {
    "seed": 3,
    "config": "configs/sandbox.py",
    "wall_seconds": {"pretrain": 200.0, "total": 900.0},
    "peak_rss_gib": 2.5,
    "models": {
        "gpt": model(0.14, 2.0),
        "gpt_prompted": model(0.27, 2.0),
        "sft": model(0.5, 2.6),
        "ppo": model(0.7, 3.0),
        "ppo_ptx": model(0.72, 2.25),
    },
    "reward_model": {
        "accuracy": {"training_labelers": 0.712, "heldout_labelers": 0.694},
        "labeler_agreement": {"training": 0.726, "heldout": 0.731},
        "pairs": 12345,
        "calibration": {"training": BINS, "heldout": BINS[:1]},
    },
}
UNKNOWN = {"true_quality": None, "win_rate_vs_sft": None, "likert": None, "metadata": None}
HUMAN = {
    "seed": 0,
    "config": "configs/e2e.py",
    "wall_seconds": {"pretrain": 200.0, "total": 900.0},
    "peak_rss_gib": 2.5,
    "models": {name: SANDBOX["models"][name] | UNKNOWN for name in ("gpt", "sft", "ppo", "ppo_ptx")},
    "reward_model": {"accuracy": None, "labeler_agreement": None, "pairs": 7000},
    "human": {
        "accuracy": {
            "single": {"reward_model": estimate(0.66), "length": estimate(0.61), "raters": estimate(0.674)},
            "averaged": {"reward_model": estimate(0.7), "length": estimate(0.608), "difference": estimate(0.092)},
        },
        "length_prefers": "longer",
        "calibration": {"single": BINS, "averaged": BINS},
        "facts_stated": {"references": estimate(0.926), "sft": estimate(0.88), "ppo": estimate(0.91)},
    },
}
METRICS = {
    stage: [{"step": i, "reward": i / 10, "kl": i / 5, **({"true_quality": 0.5} if i % 2 else {})} for i in range(1, 6)]
    for stage in ("ppo", "ppo_ptx")
} | {
    "reward": [
        {"step": 0, "validation_loss": 0.7, "validation_accuracy": 0.5},
        {"step": 10, "loss": 0.6, "accuracy": 0.65, "padding": 0.1},
        {"step": 20, "loss": 0.5, "accuracy": 0.7, "validation_loss": 0.6, "validation_accuracy": 0.68},
    ]
}


@given(st.floats(0.5, 5), st.floats(0.01, 2), st.floats(-0.5, 1.5))
def test_alignment_tax_is_the_share_that_ppo_ptx_takes_back(gpt, given_away, share):
    ppo = gpt + given_away
    losses = {"gpt": gpt, "ppo": ppo, "ppo_ptx": ppo - share * given_away}
    results = {"models": {name: {"pretrain_loss": loss} for name, loss in losses.items()}}
    assert findings.alignment_tax(results) == pytest.approx(share, abs=1e-6)


def test_alignment_tax_is_unknown_if_ppo_gave_nothing_away_or_a_loss_is_missing():
    results = copy.deepcopy(SANDBOX)
    assert findings.alignment_tax(results) == pytest.approx(0.75)
    results["models"]["ppo"]["pretrain_loss"] = 1.9
    assert findings.alignment_tax(results) is None
    results["models"]["ppo"]["pretrain_loss"] = None
    assert findings.alignment_tax(results) is None


def test_the_table_is_aligned_and_followed_by_findings():
    lines = report.terminal_table(SANDBOX).split("\n")
    header, rows = lines[0], lines[2:7]
    assert [row.split("  ")[0] for row in rows] == ["GPT", "GPT (prompted)", "SFT", "PPO", "PPO-ptx"]
    assert len({len(line) for line in (header, *rows)}) == 1
    assert re.findall(r"[\d.]+ ± [\d.]+", rows[4]) == ["0.720 ± 0.030", "0.700 ± 0.030", "0.660 ± 0.030"]
    assert lines[8:] == [
        "Held-out labelers prefer PPO and PPO-ptx to SFT.",
        "Held-out labelers prefer SFT to GPT and GPT (prompted).",
        "PPO-ptx takes back 75 % of the loss on pretraining text that PPO gave away.",
        "The reward model orders 71.2 % of untied pairs as training labelers do; they agree on 72.6 %.",
        "The reward model orders 69.4 % of untied pairs as held-out labelers do; they agree on 73.1 %.",
    ]


def test_a_smoke_run_makes_no_claims(tmp_path):
    smoke = SANDBOX | {"config": "configs/sandbox.py:smoke"}
    assert report.terminal_table(smoke).split("\n")[8:] == [findings.SMOKE]
    text = report.write_report(tmp_path, smoke, METRICS).read_text()
    assert f"**{findings.SMOKE}**" in text and "## Findings" not in text
    for claim in ("takes back", "prefer", "untied pairs"):
        assert claim not in text
    assert not findings.is_smoke(SANDBOX) and not findings.is_smoke(SANDBOX | {"config": "configs/instructgpt.py:175b"})


def test_a_win_rate_whose_interval_contains_one_half_is_too_small_to_tell():
    results = copy.deepcopy(SANDBOX)
    results["models"]["ppo"]["win_rate_vs_sft"]["heldout"] = estimate(0.52)
    text = report.terminal_table(results)
    assert "Held-out labelers prefer PPO-ptx to SFT.\n" in text
    assert "The preference between SFT and PPO is too small to tell.\n" in text


def test_an_alignment_tax_below_the_least_is_too_small_to_tell():
    results = copy.deepcopy(SANDBOX)
    results["models"]["ppo"]["pretrain_loss"] = 2.004
    text = report.terminal_table(results)
    assert "tax is too small to tell: PPO's loss on pretraining text is 0.0040 nats per token above GPT's." in text
    assert "takes back" not in text


@pytest.mark.parametrize(
    ("accuracy", "agreement", "finding"),
    [
        (estimate(0.7), estimate(0.8), "do; they agree on 80.0 ± 3.0 %."),
        (estimate(0.7), estimate(0.72), "do; they agree on 72.0 ± 3.0 %. The difference is too small to tell."),
        (estimate(0.52), estimate(0.8), "%. The reward model's difference from chance is too small to tell."),
    ],
)
def test_an_accuracy_whose_interval_overlaps_is_too_small_to_tell(accuracy, agreement, finding):
    results = copy.deepcopy(SANDBOX)
    results["reward_model"]["intervals"] = {
        "accuracy": {"training": accuracy},
        "labeler_agreement": {"training": agreement},
    }
    (line,) = [line for line in report.terminal_table(results).split("\n") if "training labelers do" in line]
    assert line.endswith(finding)


def test_a_difference_from_length_whose_interval_contains_zero_is_too_small_to_tell():
    results = copy.deepcopy(HUMAN)
    results["human"]["accuracy"]["averaged"]["difference"] = estimate(0.02)
    assert "difference 2.0 ± 3.0 % (too small to tell)" in report.terminal_table(results)
    assert "too small to tell" not in report.terminal_table(HUMAN)


def test_every_column_is_explained(tmp_path):
    for results in (SANDBOX, HUMAN):
        text = report.write_report(tmp_path, results, {}).read_text()
        (header,) = [line for line in text.splitlines() if line.startswith("| model |")]
        explained = re.findall(r"^- \*(.+)\*: \w", text, re.MULTILINE)
        assert explained == [cell.strip() for cell in header.strip("|").split("|")[1:]]


def write_answers(workdir, count, text="an answer"):
    (workdir / "evaluate").mkdir()
    rows = [{"prompt": f"prompt {i}", "sft": f"{text} {i}", "ppo_ptx": f"{text} {i}", "dpo": "x"} for i in range(count)]
    (workdir / "evaluate" / "answers.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    )


def test_the_report_shows_all_models_answers_to_ten_prompts(tmp_path):
    write_answers(tmp_path, 25)
    guests = SANDBOX | {"models": SANDBOX["models"] | {"dpo": model(0.6, 2.5)}}
    first, second = (report.write_report(tmp_path, guests, {}).read_text() for _ in range(2))
    assert first == second  # the prompts are the same each time
    shown = re.findall(
        r"```text\nprompt +prompt (\d+)\n\nSFT +an answer (\d+)\nPPO-ptx +an answer (\d+)\nDPO +x", first
    )
    assert len({numbers[0] for numbers in shown}) == 10
    assert all(len(set(numbers)) == 1 for numbers in shown)
    assert "answers to 10 of 25 test prompts" in first


def test_answers_cannot_end_their_block_or_fill_the_report(tmp_path):
    write_answers(tmp_path, 2, "```\n# heading\n" + "word " * 2000)
    text = report.write_report(tmp_path, SANDBOX, {}).read_text()
    assert text.count("\n````text\n") == text.count("\n````\n") == 2
    assert "answers to 2 of 2 test prompts" in text and len(text) < 10_000


def test_line_separators_in_an_answer_do_not_end_its_line(tmp_path):
    write_answers(tmp_path, 2, "one\u2028two\u0085three")
    assert "answers to 2 of 2 test prompts" in report.write_report(tmp_path, SANDBOX, {}).read_text()


def test_without_answers_there_is_no_section_for_them(tmp_path):
    assert "## Answers" not in report.write_report(tmp_path, SANDBOX, {}).read_text()


def test_null_measures_have_no_column_and_human_measures_are_shown():
    table = report.terminal_table(HUMAN)
    for absent in ("true quality", "vs SFT", "Likert", "None"):
        assert absent not in table
    rows = {line.split("  ")[0]: line for line in table.split("\n")}
    assert "0.910 ± 0.030" in rows["PPO"]
    assert "–" in rows["PPO-ptx"]
    assert "by averaged raters: reward model 70.0 ± 3.0 %, length baseline (longer is better) 60.8 ± 3.0 %" in table
    assert "agreement of raters 67.4 ± 3.0 %" in table
    assert "Texts by people state 92.6 ± 3.0 %" in table


@pytest.mark.parametrize(
    ("results", "drawn"),
    [
        (SANDBOX, ["calibration", "ppo", "pretrain_loss", "reward_model", "win_rates"]),
        (HUMAN, ["calibration", "human", "ppo", "pretrain_loss", "reward_model"]),
    ],
)
def test_the_report_shows_every_figure(tmp_path, results, drawn):
    path = report.write_report(tmp_path, results, METRICS)
    text = path.read_text()
    assert sorted(re.findall(r"!\[\w+\]\((\w+)\.png\)", text)) == drawn
    assert sorted(png.stem for png in tmp_path.glob("*.png")) == drawn
    for name in drawn:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert results["config"] in text and "None" not in text


def test_the_report_has_the_flags_of_table_3(tmp_path):
    text = report.write_report(tmp_path, SANDBOX, {}).read_text()
    assert "| hallucination | 0.250 | 0.250 | 0.250 | 0.250 | 0.250 |" in text
    assert "ppo.png" not in text


def test_win_rates_are_drawn_above_their_models():
    (axes,) = figures.win_rates(SANDBOX).axes
    points = [container.lines[0].get_xydata()[0] for container in axes.containers]
    names = [label.get_text().replace("\n", " ") for label in axes.get_xticklabels()]
    drawn = sorted((names[round(x)], round(y, 6)) for x, y in points)
    expected = [
        (figures.MODELS[name][0].replace("\n", " "), round(e["mean"], 6))
        for name, found in SANDBOX["models"].items()
        for e in found["win_rate_vs_sft"].values()
    ]
    assert drawn == sorted(expected)


def test_ppo_curves_are_the_metrics():
    figure = figures.ppo_curves(METRICS)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["reward (RM)", "KL to initial policy (nats)", "true quality"]
    for line in figure.axes[0].lines:
        assert line.get_xydata().tolist() == [[i, i / 10] for i in range(1, 6)]
    assert figure.axes[2].lines[0].get_xdata().tolist() == [1, 3, 5]


def test_without_true_quality_there_is_no_panel_for_it():
    metrics = {"ppo": [{"step": 1, "reward": 0.0, "kl": 0.0}]}
    assert len(figures.ppo_curves(metrics).axes) == 2
    assert figures.ppo_curves({"pretrain": [{"step": 1, "loss": 2.0}]}) is None


def test_prompted_gpt_has_no_bar():
    (axes,) = figures.pretrain_loss(SANDBOX).axes
    assert [bar.get_height() for bar in axes.patches] == [2.0, 2.6, 3.0, 2.25]


def test_the_reward_model_s_curves_are_the_metrics():
    figure = report.reward_model_figures(SANDBOX, METRICS)["reward_model"]
    drawn = {
        (axes.get_title(), line.get_label()): line.get_xydata().tolist() for axes in figure.axes for line in axes.lines
    }
    expected = {
        ("loss", "training"): [[10, 0.6], [20, 0.5]],
        ("loss", "held-out rankings"): [[0, 0.7], [20, 0.6]],
        ("accuracy", "pairs"): [[10, 0.65], [20, 0.7]],
        ("accuracy", "held-out pairs"): [[0, 0.5], [20, 0.68]],
    }
    assert {name: drawn[name] for name in expected} == expected


@pytest.mark.parametrize(("results", "groups"), [(SANDBOX, ["training", "held-out"]), (HUMAN, ["single", "averaged"])])
def test_calibration_is_drawn_for_each_group_next_to_the_perfect_line(results, groups):
    (axes,) = report.reward_model_figures(results, {})["calibration"].axes
    *lines, perfect = axes.lines
    assert [line.get_label() for line in lines] == [f"{group} raters" for group in groups]
    assert lines[0].get_xydata().tolist() == [[0.55, 0.6], [0.9, 0.8]]
    assert perfect.get_xydata().tolist() == [[0.5, 0.5], [1, 1]]


def test_a_run_on_files_without_labelers_has_no_calibration():
    assert report.reward_model_figures(SANDBOX | {"reward_model": None}, {}) == {}
