"""Writes the model card of a policy or a reward model from what its run has left: Markdown with a YAML header.

A card says where the weights come from, how to use them, what was measured, what differs from the paper, what was
learned from, and how to repeat it. Absolute paths are cut to their last name, because a card is read by others.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections

from instructjax.recipe import listing
from instructjax.reporting import data_report
from instructjax.reporting.findings import SMOKE, findings, is_smoke
from instructjax.reporting.tables import Results, known_columns, markdown, model_rows
from instructjax.runs.invariants import INVARIANTS


@dataclasses.dataclass(frozen=True)
class Card:
    """What a model card is written from.

    Attributes:
      name: of the model, such as "me/my-policy".
      stage: the stage that trained it; "reward" for a reward model.
      recipe: the name of the recipe, such as "configs/sandbox.py".
      config: the whole recipe.
      given: the keys of the recipe that the command line sets.
      code: the version of the package that trained it.
      params: the number of its weights.
      prompt_end: the text after a prompt, before the answer; None if prompts go through the chat template.
      max_response: the longest answer in training, in tokens.
      base: the model from which training started; "" if it started from random weights.
      license: its identifier, such as "apache-2.0"; "" if none is stated.
      results: the content of results.json; {} if the run is not evaluated.
      data: the counts of records, by set and split; see `summary.summarize`.
      metrics: the lines of the stage's metrics.jsonl.
    """

    name: str
    stage: str
    recipe: str
    config: ml_collections.ConfigDict
    given: Sequence[str]
    code: str
    params: int
    prompt_end: str | None
    max_response: int
    base: str
    license: str
    results: Results
    data: data_report.Summary
    metrics: Sequence[Mapping[str, float]]

    @property
    def is_reward_model(self) -> bool:
        """Whether the model scores answers instead of writing them."""
        return self.stage == "reward"


def write(card: Card) -> str:
    """Returns the content of README.md."""
    parts = [
        _header(card),
        f"# {card.name}",
        _about(card),
        "## Use",
        _use(card),
        "## Results",
        _results(card),
        "## Recipe",
        _recipe(card),
        "## Data",
        data_report.records_table(card.data) if card.data else "No records were counted.",
        "## Invariants",
        _invariants(card),
        "## License",
        _license(card),
        "## Reproduce",
        "```bash\n" + command(card) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def command(card: Card) -> str:
    """Returns the command that repeats the run up to this stage's results."""
    flags = [f"--config={shorten(card.recipe)}"]
    for key in dict.fromkeys(card.given):
        section, _, name = key.rpartition(".")
        value = (card.config[section] if section else card.config)[name]
        text = value if isinstance(value, str) else repr(value)
        if key == "data.separator":
            text = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")
        flags.append(shlex.quote(f"--config.{key}={shorten(text)}"))
    return " \\\n    ".join(["instructjax reproduce", *flags])


def shorten(text: str) -> str:
    """Cuts absolute paths in a text to their last name. Addresses such as gs://bucket/file stay."""
    return re.sub(rf"(?<![\w/.])~?/(?!/)(?:{_FOLDER}/)*(?=[^\s,'\"/])", "", text)


_FOLDER = r"[^\s,'\"/](?:[^\n,'\"/]*[^\s,'\"/])?"  # a name that may have spaces inside


def _header(card: Card) -> str:
    task = "text-classification" if card.is_reward_model else "text-generation"
    tags = ["instructjax", "rlhf", "reward-model" if card.is_reward_model else card.stage]
    lines = [f"license: {card.license}"] if card.license else []
    lines += ["library_name: transformers", f"pipeline_tag: {task}", f"tags: {json.dumps(tags)}"]
    return "\n".join(["---", *lines, "---"])


def _about(card: Card) -> str:
    kind = "The reward model" if card.is_reward_model else f"The policy of the stage `{card.stage}`"
    start = f"Training started from {shorten(card.base)}." if card.base else "Training started from random weights."
    text = (
        f"{kind} of a run of InstructGPT (Ouyang et al. 2022): recipe `{shorten(card.recipe)}`, seed "
        f"{card.config.seed}, {card.params:,} weights, instructjax {card.code}. {start}"
    )
    if "sandbox" in card.config:
        text += (
            " Its world, its texts and its labelers are simulated. It tests the method, and is not an assistant for "
            "people."
        )
    return text


def _use(card: Card) -> str:
    kind = "AutoModelForSequenceClassification" if card.is_reward_model else "AutoModelForCausalLM"
    lines = [
        f"from transformers import AutoTokenizer, {kind}",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(card.name)})",
        f"model = {kind}.from_pretrained({json.dumps(card.name)})",
    ]
    if card.prompt_end is None:
        messages = '[{"role": "user", "content": prompt}'
        messages += ', {"role": "assistant", "content": response}]' if card.is_reward_model else "]"
        opened = "" if card.is_reward_model else ", add_generation_prompt=True"
        lines.append(f"text = tokenizer.apply_chat_template({messages}, tokenize=False{opened})")
    else:
        after = " + response + tokenizer.eos_token" if card.is_reward_model else ""
        lines.append(f"text = prompt + {json.dumps(card.prompt_end, ensure_ascii=False)}{after}")
    lines.append('inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")')
    if card.is_reward_model:
        lines.append("score = model(**inputs).logits[0, 0]")
    else:
        lines.append(f"answer = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens={card.max_response})")
    return "```python\n" + "\n".join(lines) + "\n```"


def _results(card: Card) -> str:
    results = card.results
    if not results:
        return "The run was not evaluated."
    parts = [f"**{SMOKE}**"] if is_smoke(results) else []
    parts.append(markdown(model_rows(results)))
    parts.append("Intervals (±) are 95 %, clustered by prompt. The columns:")
    parts.append("\n".join(f"- *{column.name}*: {column.meaning}" for column in known_columns(results)))
    if not is_smoke(results):
        parts.append("\n".join(f"- {text}" for text in findings(results)))
    return "\n\n".join(part for part in parts if part)


def _recipe(card: Card) -> str:
    rows = [row for row in listing.rows(card.config) if row.is_changed or row.is_added]
    table = [["key", "value", "the paper's", "source"]]
    for row in rows:
        key = f"`{row.section}.{row.name}`" if row.section else f"`{row.name}`"
        table.append([key, f"`{shorten(row.value)}`", "" if row.paper is None else f"`{row.paper}`", row.source])
    return f"{len(rows)} keys differ from the paper's recipe for 1.3B or are not in it.\n\n{_table(table)}"


def _invariants(card: Card) -> str:
    found = {name: [line[name] for line in card.metrics if name in line] for name in INVARIANTS}
    rows = [
        [f"`{name}`", f"{max(values):.3g}", f"{INVARIANTS[name].limit:g}", f"{INVARIANTS[name].low_precision_limit:g}"]
        for name, values in found.items()
        if values
    ]
    if not rows:
        return "This stage reports no invariants; those of PPO compare the sampler, the masks and the rewards."
    header = ["invariant", "largest value", "limit in float32", "limit in lower precision"]
    action = {"stop": "A larger value stops the run.", "warn": "A larger value prints a warning."}
    return f"{_table([header, *rows])}\n\n{action[card.config.invariants]}"


def _license(card: Card) -> str:
    base = f"The base model is {shorten(card.base)}." if card.base else "The weights have no base model."
    return f"License of the weights: {f'`{card.license}`' if card.license else 'not stated'}. {base}"


def _table(rows: Iterable[Sequence[Any]]) -> str:
    return markdown([[str(cell).replace("|", "/") for cell in row] for row in rows])
