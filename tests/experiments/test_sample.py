"""Tests that `sample.py` takes prompts as they are, compares policies, chooses by reward, and chats."""

import dataclasses
import json
import weakref

import numpy as np
import pytest

from instructjax.conversation import Conversation, Message
from instructjax.data.layouts import Layout
from instructjax.models.transformer import LanguageModel
from instructjax.rollout import samplers
from instructjax.runs import processes
from instructjax.stages import answers, rewards
from instructjax.stages.run import Run
from instructjax.stages.trained import Trained
from instructjax.text.sentencepiece import SentencePieceTokenizer
from tests import fakes, scripts
from tests.recipes import LINES

LAYOUT = Layout(SentencePieceTokenizer.train(LINES, 290), "\n", max_prompt=80, max_response=20)


@pytest.fixture
def asked(monkeypatch):
    """Returns the list of the prompts that policies are asked. The k-th answer of STAGE is "STAGE k".

    The reward of an answer is the last digit of its number, times that of the prompt's last character.
    """
    found = []

    def answer(policy, layout, prompts, key, sampling):
        found.extend(prompts)
        return ((prompt, f"{policy} {number}") for number, prompt in enumerate(prompts))

    def score(reward, layout, prompts, answered, batch_size):
        sign = [-1.0 if record.prompt.endswith("-") else 1.0 for record in prompts]
        return [s * np.array([float(text[-1]) for text in texts]) for s, texts in zip(sign, answered, strict=True)]

    monkeypatch.setattr(Run, "open_policy", lambda run, stage, step: (stage, LAYOUT))
    monkeypatch.setattr(Run, "policy_layout", lambda run, stage, step: LAYOUT)
    monkeypatch.setattr(Run, "open_reward_model", lambda run: (None, LAYOUT))
    monkeypatch.setattr(answers, "answer", answer)
    monkeypatch.setattr(rewards, "score_texts", score)
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


def test_a_file_of_records_gives_one_prompt_a_line_and_keeps_fields(tmp_path, asked):
    lines = [{"prompt": "a fox\n\nred"}, {"prompt": [{"role": "system", "content": "a"}], "user": "u"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = [f"--prompts={tmp_path}/in.jsonl", f"--output={tmp_path}/out.jsonl", "--samples=2", "--stage=sft,ppo"]
    scripts.run("sample.py", f"--workdir={tmp_path}", *flags)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert asked[:4] == asked[4:] == ["a fox\n\nred"] * 2 + [Conversation([Message("system", "a")])] * 2
    assert found == [
        {**lines[0], "responses": ["sft 0", "sft 1", "ppo 0", "ppo 1"], "models": ["sft", "sft", "ppo", "ppo"]},
        {**lines[1], "responses": ["sft 2", "sft 3", "ppo 2", "ppo 3"], "models": ["sft", "sft", "ppo", "ppo"]},
    ]


def test_only_the_first_process_writes_the_file(tmp_path, asked, monkeypatch):
    monkeypatch.setattr(processes, "first", lambda function: None)
    scripts.run("sample.py", f"--workdir={tmp_path}", f"--output={tmp_path}/out.jsonl", "--prompt=a")
    assert asked == ["a"] and not (tmp_path / "out.jsonl").exists()


def test_a_flag_chooses_the_dtype_of_the_weights(tmp_path, monkeypatch):
    models = []

    def make_sampler(model, *given, **keys):
        models.append(model)
        return lambda params, prompts, key: iter([(None, ["red"])])

    policy = Trained(LanguageModel(fakes.CONFIG), {}, LAYOUT.tokenizer)
    monkeypatch.setattr(Run, "open_policy", lambda run, stage, step: (policy, LAYOUT))
    monkeypatch.setattr(Run, "policy_layout", lambda run, stage, step: LAYOUT)
    monkeypatch.setattr(samplers, "make_sampler", make_sampler)
    for flags in ([], ["--dtype=int8"]):
        assert "-> red" in scripts.run("sample.py", f"--workdir={tmp_path}", "--prompt=a", *flags)
    assert models == [LanguageModel(dataclasses.replace(fakes.CONFIG, decoding_dtype=dtype)) for dtype in ("", "int8")]


def test_policies_are_printed_side_by_side_with_rewards(tmp_path, asked):
    printed = scripts.run("sample.py", f"--workdir={tmp_path}", "--stage=sft,ppo_ptx", "--rewards", "--prompt=a")
    assert printed == "a\n  sft       0.00 -> sft 0\n  ppo_ptx   0.00 -> ppo_ptx 0\n\n"
    assert scripts.run("sample.py", f"--workdir={tmp_path}", "--prompt=a") == "a\n  -> ppo_ptx 0\n\n"


class Policy(str):
    """A name that can be referred to weakly."""


def test_one_policy_is_in_memory_at_a_time(tmp_path, asked, monkeypatch):
    for stage in ("pretrain", "sft", "ppo"):
        (tmp_path / stage / "checkpoints").mkdir(parents=True)
    loaded = []

    def open_policy(run, stage, step):
        assert all(policy() is None for policy in loaded)
        policy = Policy(stage)
        loaded.append(weakref.ref(policy))
        return policy, LAYOUT

    monkeypatch.setattr(Run, "open_policy", open_policy)
    printed = scripts.run("sample.py", f"--workdir={tmp_path}", "--stage=all", "--prompt=a")
    assert len(loaded) == 3 and printed.count("->") == 3


def test_a_prompt_that_does_not_fit_is_rejected_before_a_policy_is_read(tmp_path, asked, monkeypatch):
    monkeypatch.setattr(Run, "open_policy", None)
    with pytest.raises(scripts.Left, match=r"--prompt: prompt: expected at most 80 tokens \(data.max_prompt\), found"):
        scripts.run("sample.py", f"--workdir={tmp_path}", f"--prompt={'fox ' * 80}")


@pytest.mark.parametrize(("prompt", "best"), [("a", "3.00 -> ppo_ptx 3"), ("a-", "-0.00 -> ppo_ptx 0")])
def test_the_best_answer_has_the_largest_reward(tmp_path, asked, prompt, best):
    printed = scripts.run("sample.py", f"--workdir={tmp_path}", "--samples=4", "--best", f"--prompt={prompt}")
    assert printed.splitlines()[1].strip() == best


def test_a_chat_is_a_conversation_that_forgets_what_does_not_fit(tmp_path, asked):
    printed = scripts.run("sample.py", f"--workdir={tmp_path}", "--chat", stdin=b"a\nfox\n\nb\n" + b"red fox\n" * 6)
    first, second, other = asked[:3]
    assert (first, other) == ("a", "b")
    assert second == Conversation([Message("user", "a"), Message("assistant", "ppo_ptx 0"), Message("user", "fox")])
    assert printed.count("-> ppo_ptx 0") == 9 and "(ppo_ptx forgets 2 messages)" in printed
    assert all(LAYOUT.count_prompt(prompt) <= LAYOUT.max_prompt for prompt in asked)
