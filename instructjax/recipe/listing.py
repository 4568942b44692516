"""Lists the keys of a recipe next to the paper's values, and writes the page that describes all keys."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import ml_collections

from instructjax.recipe import run_keys
from instructjax.recipe.declared import RENAMED, SECTIONS, paper
from instructjax.recipe.key import Key, Section


@dataclasses.dataclass(frozen=True)
class Row:
    """One key of a recipe.

    Attributes:
      section: the name of its section, "" if it has none.
      name: its name in the section.
      value: its value, as text.
      paper: the paper's value for 1.3B as text; None if the paper's recipe does not have the key.
      unit: see `Key`.
      source: the source of the paper's value; see `Key`.
    """

    section: str
    name: str
    value: str
    paper: str | None
    unit: str = ""
    source: str = ""

    @property
    def is_changed(self) -> bool:
        """Whether the paper's recipe has a different value."""
        return self.paper not in (None, self.value)

    @property
    def is_added(self) -> bool:
        """Whether the paper's recipe does not have this key."""
        return self.paper is None


def rows(config: ml_collections.ConfigDict) -> list[Row]:
    """Returns every key of a recipe, in the order of the declarations.

    Args:
      config: a whole recipe. Undeclared sections come last, without units and sources.
    """
    reference = paper()
    found = [_row("", name, config, reference, key) for name, key in run_keys.ROOT.keys.items()]
    others = [name for name, value in config.items() if name not in SECTIONS and name not in run_keys.ROOT.keys]
    for section in (*SECTIONS, *others):
        if section in config:
            keys = SECTIONS[section].keys if section in SECTIONS else dict.fromkeys(config[section])
            found += [
                _row(section, name, config[section], reference.get(section, {}), key) for name, key in keys.items()
            ]
    return found


def about(section: str) -> str:
    """Returns the description of a section; "" if it is not declared."""
    return run_keys.ROOT.about if not section else SECTIONS[section].about if section in SECTIONS else ""


def as_text(value: Any) -> str:
    """Formats a value as in a recipe, on one line."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def markdown() -> str:
    """Returns the content of docs/recipe.md: every declared key with value, range, unit, meaning and source."""
    return "".join(_page())


def _row(section: str, name: str, values: Any, reference: Any, key: Key | None) -> Row:
    printed = as_text(reference[name]) if name in reference else None
    unit, source = (key.unit, key.source) if key else ("", "")
    return Row(section, name, as_text(values[name]), printed, unit, source)


_INTRODUCTION = """# The keys of a recipe

<!-- Written by `python experiments/config.py --markdown > docs/recipe.md` from instructjax/recipe; do not edit. -->

A recipe is a Python file whose `get_config()` returns a locked `ml_collections.ConfigDict`. Its keys are declared once,
in [`run_keys.py`](../instructjax/recipe/run_keys.py) and [`stage_keys.py`](../instructjax/recipe/stage_keys.py); this
page lists them. The values are those of [`configs/instructgpt.py`](../configs/instructgpt.py): the paper's for 1.3B, or
a default if the paper does not have the key.

    python experiments/config.py --config=configs/sandbox.py             # a recipe's values, units and sources
    python experiments/config.py --config=configs/sandbox.py --changed   # what it changes and adds
    python experiments/reproduce.py --config.ppo.kl_coefficient=0.05     # another value for one run

Your own recipe starts from another one and changes some keys:

```python
from configs import sandbox


def get_config(variant=""):
    config = sandbox.get_config(variant).unlock()
    config.ppo.kl_coefficient = 0.05
    return config.lock()
```

If a value is outside its range, or a key is missing or not declared, a script stops before any work. The error names
the key, and suggests the nearest key for a misspelled one and the new name for a renamed one.

*Source* says where a value comes from. "C.4" is appendix C.4 of the paper (Ouyang et al. 2022). "silent" means that the
paper needs such a value and does not give it. Keys without a source describe this program or its data.

## Your own section

A new algorithm declares the keys of its section next to its stage, and its recipe uses the declared values. The stage
then checks its section as the paper's stages do; see [own_algorithm.md](own_algorithm.md).

```python
from instructjax.recipe.key import AT_LEAST_0, INTEGER_FROM_1, Key, section
from instructjax.stages.stage import Stage, stage

BEST = section(
    "fine-tuning on the best of several samples",
    samples=Key(8, INTEGER_FROM_1, "samples", "of each prompt", "a first guess"),
    learning_rate=Key(1e-4, AT_LEAST_0, "", "peak"),
)


@stage("best", after=("sft", "reward"), uses=("prompts",), keys=BEST)
def run(stage: Stage) -> None: ...
```

In the recipe: `config.best = declared.defaults(BEST)`, with `from instructjax.recipe import declared`. A stage whose
section has PPO's keys declares `keys=stage_keys.PPO`.
"""


def _page() -> Iterator[str]:
    yield _INTRODUCTION
    for name, section in {"": run_keys.ROOT, **SECTIONS}.items():
        yield f"\n## {f'`{name}`: ' if name else ''}{section.about}\n\n"
        yield from _table(section)
    yield "\n## Renamed keys\n\n| old name | new name |\n| - | - |\n"
    yield from (f"| `{old}` | `{new}` |\n" for old, new in RENAMED.items())


def _table(section: Section) -> Iterator[str]:
    yield "| key | value | range | unit | meaning | source |\n| - | - | - | - | - | - |\n"
    for name, key in section.keys.items():
        cells = (f"`{name}`", f"`{as_text(key.value)}`", key.range.expected, key.unit, key.meaning, key.source)
        yield f"| {' | '.join(cell.replace('|', '/').replace('*', '&#42;') for cell in cells)} |\n"
