import json

from command_line import ROOT

from tests.scripts import run


def test_a_program_is_planned_for_this_machine():
    found = run("plan.py", f"--config={ROOT}/configs/sandbox.py:smoke", "--topology=cpu:1", "--programs=sft", "--json")
    program, *stages = map(json.loads, found.splitlines())
    assert program["name"] == "sft" and program["fits"] is True
    assert program["compiled"]["peak"] > sum(program["residents"].values())
    assert [stage["name"] for stage in stages] == ["pretrain", "sft", "reward", "ppo_init", "ppo", "ppo_ptx"]
