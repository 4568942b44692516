import json

from command_line import ROOT

from tests.scripts import run


def test_a_program_is_planned_for_this_machine(tmp_path):
    path = tmp_path / "plan.jsonl"
    printed = run(
        "plan.py", f"--config={ROOT}/configs/sandbox.py:smoke", "--topology=cpu:1", "--programs=sft", f"--json={path}"
    )
    head, row, *stages = map(json.loads, path.read_text().splitlines())
    assert head == {"recipe": "configs/sandbox.py:smoke", "topology": "cpu:1"}
    program = row["program"]
    assert program["name"] == "sft" and program["fits"] is True
    assert program["compiled"]["peak"] > sum(program["residents"].values())
    assert [line["stage"]["name"] for line in stages] == ["pretrain", "sft", "reward", "ppo_init", "ppo", "ppo_ptx"]
    assert "sft" in printed and "yes" in printed
