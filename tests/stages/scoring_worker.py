"""One of two processes that need the scores of a reward function; test_scoring.py starts it.

python tests/stages/scoring_worker.py COORDINATOR INDEX
"""

import sys

import ml_collections

from instructjax.errors import RewardFunctionError
from instructjax.records import Prompt
from instructjax.rollout.reward_function import RewardFunction
from instructjax.runs import processes
from instructjax.stages import scoring

calls = 0


def judge(prompts, responses):
    global calls
    calls += 1
    return [
        float(len(response)) if prompt == "a" else None for prompt, response in zip(prompts, responses, strict=True)
    ]


if __name__ == "__main__":
    coordinator, index = sys.argv[1:]
    processes.start(coordinator, int(index), 2)
    limits = {"reward_retries": 0, "reward_retry_seconds": 0.0, "reward_timeout_seconds": 0.0}
    score = scoring.make_score(RewardFunction(judge, "judge.py:score", "", False), ml_collections.ConfigDict(limits))
    print("scores", score("ppo, iteration 1", [Prompt(prompt="a")] * 2, ["x", "xyz"]).tolist())
    try:
        score("ppo, iteration 2", [Prompt(prompt="b")], ["x"])
    except RewardFunctionError as error:
        print("error", error)
    print("calls", calls)
