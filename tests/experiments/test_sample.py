"""Tests that `sample.py` takes prompts as they are, as training does."""

import dataclasses

import pytest

from instructjax.stages import answers
from instructjax.stages.run import Run
from tests import scripts
from tests.data.test_layouts import LAYOUT


@pytest.fixture
def asked(monkeypatch):
    """Returns the list of the prompts that a policy is asked."""
    found = []

    def answer(policy, layout, prompts, key, sampling):
        found.extend(prompts)
        return ((prompt, "yes") for prompt in prompts)

    monkeypatch.setattr(Run, "open_policy", lambda *_: (None, dataclasses.replace(LAYOUT, max_prompt=20)))
    monkeypatch.setattr(answers, "answer", answer)
    return found


DIALOGUE = b"a fox\n\nred fox\n"


@pytest.mark.parametrize(
    ("flags", "stdin", "prompts"),
    [
        (["--prompt= a b\n"], b"", [" a b\n"]),
        ([], b" a b \r\n\n c\n", [" a b ", " c"]),
        (["--whole_input"], DIALOGUE, ["a fox\n\nred fox"]),
        (["--whole_input", "--prompt=e"], DIALOGUE, ["e"]),
    ],
)
def test_prompts_keep_their_spaces_and_line_breaks(tmp_path, asked, flags, stdin, prompts):
    scripts.run("sample.py", f"--workdir={tmp_path}", *flags, stdin=stdin)
    assert asked == prompts
