"""docs/paper.md covers the paper, and every name, value and result on it is right.

`python tests/test_paper_page.py` rewrites our results from notebooks/runs, with the repository on PYTHONPATH.
"""

import ast
import functools
import json
import operator
import pathlib
import re

import pytest

from configs import instructgpt, sandbox

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILE = ROOT / "docs" / "paper.md"
PAGE = FILE.read_text()
CODE = sorted({code for code in re.findall(r"`([^`]+)`", PAGE) if not code.startswith("python ")})
VALUES = re.findall(r"`([\w.:]+)` = ([^\s,;|]+)", PAGE)
RUNS = ("sandbox", "sandbox-seed1", "sandbox-seed2")
MODELS = {"GPT": "gpt", "prompted": "gpt_prompted", "SFT": "sft", "PPO": "ppo", "PPO-ptx": "ppo_ptx"}

ITEMS = (
    *(f"Equation {i}" for i in (1, 2)),
    *(f"Figure {i}" for i in range(1, 14)),  # 1 to 9 in the main text, 10 to 13 in appendices B and C
    *(f"Table {i}" for i in range(1, 14)),  # 1 to 3 in the main text, the others in appendices A and B
    *("A.1", "A.2", "A.2.1", "A.2.2", "A.3", "A.4", "B.1", "B.2", "B.3", "B.4", "B.5"),
    *("C.1", "C.2", "C.3", "C.4", "C.5"),
)


def wrong(code):
    """Returns the problem of a span of code; None if it names something that exists."""
    if "::" in code:
        file, _, name = code.partition("::")
        return None if name in names(file) else f"{file} has no {name}"
    if "/" in code:
        return None if (ROOT / code).exists() else f"there is no {code}"
    key = code.removeprefix("--config.").partition("=")[0]
    try:
        value(key)
    except (AttributeError, KeyError):
        return f"there is no key {key}"
    return None


def value(key):
    size, _, key = key.rpartition(":")
    config = sandbox.get_config() if key.startswith("sandbox.") else instructgpt.get_config(size or "1p3b")
    return operator.attrgetter(key)(config)


def mean(get):
    """Computes the mean of a number over the committed runs."""
    results = [json.loads((ROOT / "notebooks" / "runs" / run / "results.json").read_text()) for run in RUNS]
    return sum(get(result) for result in results) / len(results)


def by_model(field, form="{:.2f}", models=tuple(MODELS)):
    """Formats a number per model: "GPT 0.19, ..."."""
    path = field.split(".")

    def read(result, model):
        return functools.reduce(operator.getitem, path, result["models"][MODELS[model]])

    return ", ".join(f"{m} {form.format(mean(lambda result, m=m: read(result, m)))}" for m in models)


def by_group(field, **groups):
    """Formats a share per group of labelers: "training 74.0 %, ..."."""
    shares = {name: mean(lambda result, key=key: result["reward_model"][field][key]) for name, key in groups.items()}
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items()).replace("heldout", "held-out")


def ours():
    """Returns {start of a row: its cell "ours"}, from the committed runs."""
    losses = by_model("pretrain_loss", models=("GPT", "PPO", "PPO-ptx"))
    cells = {
        "| Figure 1 |": by_model("win_rate_vs_sft.training.mean"),
        "| Section 3.4, agreement |": by_group("labeler_agreement", training="training", heldout="heldout"),
        "| Figure 3 |": by_model("win_rate_vs_sft.heldout.mean"),
        "| Section 4.1, held-out labelers |": by_group(
            "accuracy", training="training_labelers", heldout="heldout_labelers"
        ),
        "| Figure 4 | Table 3": by_model("metadata.fails_correct_instruction", "{:.0%}", ("GPT", "PPO-ptx")),
        "| Figure 5 |": by_model("likert", "{:.1f}"),
        "| Section 4.2 |": f"nats per token: {losses}; {mean(lambda r: r['alignment_tax_recovered']):.0%} taken back",
    }
    return {start: cell.replace("%", " %") for start, cell in cells.items()}


def with_ours(page):
    """Returns the page with our results in its rows."""
    lines = page.splitlines()
    for start, text in ours().items():
        (index,) = [i for i, line in enumerate(lines) if line.startswith(start)]
        cells = lines[index].split("|")
        cells[4] = f" {text} "
        lines[index] = "|".join(cells)
    return "\n".join(lines) + "\n"


@functools.cache
def names(file):
    """Returns the names that a file defines at its top level, and CLASS.FIELD and CLASS.METHOD."""
    if not (ROOT / file).is_file():
        return frozenset()
    found = set()
    for node in ast.parse((ROOT / file).read_text()).body:
        found |= defined(node)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for inner in node.body for name in defined(inner)}
    return frozenset(found)


def defined(node):
    match node:
        case ast.FunctionDef() | ast.ClassDef():
            return {node.name}
        case ast.Assign():
            return {target.id for target in node.targets if isinstance(target, ast.Name)}
        case ast.AnnAssign(target=ast.Name()):
            return {node.target.id}
    return set()


@pytest.mark.parametrize("code", CODE)
def test_what_is_named_exists(code):
    assert wrong(code) is None


@pytest.mark.parametrize(("key", "written"), VALUES)
def test_the_value_given_for_a_key_is_its_value(key, written):
    try:
        written = ast.literal_eval(written)
    except (ValueError, SyntaxError):
        pass  # a word, such as a dtype or a size
    assert value(key) == written


def test_many_names_are_checked():
    assert len(CODE) > 100 and len(VALUES) > 40


@pytest.mark.parametrize("item", ITEMS)
def test_every_item_of_the_paper_has_a_row(item):
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| ")]
    assert any(re.search(rf"(?<![\w.]){re.escape(item)}(?!\.?\d)", row) for row in rows)


def test_our_results_are_those_of_the_committed_runs():
    assert with_ours(PAGE) == PAGE


def test_every_row_says_where_or_why_not():
    for line in PAGE.splitlines():
        if line.startswith("| ") and not line.startswith("| paper"):
            _, _, what, *numbers, where, _ = line.split("|")
            assert what.strip() and len(numbers) in (0, 2)
            assert "`" in where or "**absent**:" in where, line


@pytest.mark.parametrize(
    "code",
    [
        "instructjax/losses.py::rank_loss",
        "instructjax/records.py::Ranking.rating",
        "instructjax/loss.py::ranking_loss",
        "docs/papers.md",
        "ppo.kl_coeficient",
        "sandbox.label",
        "6b:sft.rate",
        "--config.sft.epoch=1",
        "ranking_loss",
    ],
)
def test_a_wrong_name_is_found(code):
    assert wrong(code)


if __name__ == "__main__":
    FILE.write_text(with_ours(PAGE))
