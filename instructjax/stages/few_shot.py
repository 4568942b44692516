"""GPT with a few-shot prefix, the paper's "GPT (prompted)" (section 3.5, "Baselines")."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from instructjax.records import Demonstration, Prompt
from instructjax.rollout import samplers
from instructjax.runs import interruption, progress
from instructjax.stages.rewards import Rewards
from instructjax.stages.run import Run
from instructjax.stages.trained import Trained

STOP = "\n"  # ends each example of a prefix, and so the answer


def choose_prefix(run: Run, policy: Trained, rewards: Rewards) -> str | None:
    """Writes several prefixes and takes the one whose answers have the highest rewards.

    Two of the paper's authors wrote theirs by hand; here examples are drawn from the
    training demonstrations whose response is a single line, because a line break ends the
    example. The choice by reward on validation prompts is the paper's.

    Returns:
      The prefix, or None if the context has no room for one next to the longest prompt and
      response, or no demonstration is a single line. What is missing is printed.
    """
    config, layout = run.config, run.layout
    rng = np.random.default_rng([config.seed, 5])
    records = run.records(Demonstration, "train")
    demonstrations = [record for record in records if STOP not in record.response]
    if not demonstrations:
        print("gpt_prompted: left out; expected a demonstration whose response is one line, found none")
        return None
    room = policy.model.config.max_length - layout.length
    candidates: list[str] = []
    for _ in range(1000):
        chosen = [demonstrations[int(i)] for i in rng.integers(len(demonstrations), size=config.evaluate.few_shot)]
        prefix = "".join(example.prompt + layout.separator + example.response + STOP for example in chosen)
        if len(layout.tokenizer.encode_opening(prefix)) <= room:
            candidates.append(prefix)
        if len(candidates) == config.evaluate.few_shot_candidates:
            break
    if not candidates:
        print(
            f"gpt_prompted: left out; model.max_length: expected room for {config.evaluate.few_shot} examples "
            f"(evaluate.few_shot) in addition to prompt and response, found {room} tokens"
        )
        return None
    asked = run.records(Prompt, "validation")[: config.evaluate.few_shot_prompts]
    prompts = [record.prompt for record in asked]
    key = jax.random.key(config.seed)
    with progress.Bar("evaluate: few-shot prefixes", len(candidates) * len(prompts), "answer") as bar:
        sampled = (sample_with_prefix(run, policy, prefix, prompts, key) for prefix in candidates)
        answered = list(bar.over(sampled))
    scores = rewards.of_texts(asked, list(zip(*answered, strict=True)))
    return candidates[int(np.argmax(scores.mean(axis=0)))]


def sample_with_prefix(run: Run, policy: Trained, prefix: str, prompts: Sequence[str], key: jax.Array) -> list[str]:
    """Samples an answer to each prompt after the prefix, cut at the line break that ends an example."""
    layout, section = run.layout, run.config.evaluate
    wide = dataclasses.replace(layout, max_prompt=policy.model.config.max_length - layout.max_response)
    sampler = samplers.make_sampler(policy.model, wide, temperature=section.temperature, batch_size=section.batch_size)
    batches = sampler(policy.params, [prefix + prompt for prompt in prompts], key)
    found = interruption.stoppable(batches, "evaluate")
    return [text.partition(STOP)[0] for _, batch in found for text in batch]
