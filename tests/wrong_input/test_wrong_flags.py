"""Flags"""

from tests.scripts import run
from tests.wrong_input.fault import fault


@fault("an unknown flag", "Unknown command line flag 'epochs'")
def test_unknown_flag():
    run("sft.py", "--epochs=3")


@fault("an argument that is not a flag", "expected flags only, found 'sft'")
def test_no_flag():
    run("reproduce.py", "sft")


@fault("an empty name of a recipe", "--config: expected a recipe, found no file ")
def test_empty_config():
    run("sft.py", "--config=")


@fault("an empty name of a folder", "--workdir: expected a folder, found none")
def test_empty_workdir():
    run("reproduce.py", "--workdir=")


@fault("a missing file of flags", "ERROR:: Unable to open flagfile: TEXT")
def test_flagfile():
    run("sft.py", "--flagfile=/nowhere")


@fault("an unknown stage", "flag --stages=rl: value should be one of <ppo_init|ppo|ppo_ptx>")
def test_stages():
    run("ppo.py", "--stages=rl")


@fault("an unknown type of weights that sample", "flag --dtype=int4: value should be one of <int8|int8xint8>")
def test_dtype_of_samples():
    run("sample.py", "--prompt=a", "--dtype=int4")


@fault("a missing flag", "--output: expected a value, found none")
def test_required():
    run("export_weights.py", "--stage=sft")


@fault(
    "answers to a file of another kind",
    "--output: expected a file that ends in .jsonl, found PATH",
)
def test_output_of_samples():
    run("sample.py", "--output=answers.txt", "--prompt=a")


@fault("a prompt next to a chat", "--prompt: expected none with --chat, found ['a']")
def test_prompt_of_a_chat():
    run("sample.py", "--chat", "--prompt=a")


@fault("prompts of two kinds", "--whole_input: expected none with --prompts, found True")
def test_two_kinds_of_prompts():
    run("sample.py", "--prompts=in.jsonl", "--whole_input")


@fault(
    "all stages of a folder without any",
    "--stage: expected a run with checkpoints, found none in PATH",
)
def test_all_stages_of_none(tmp_path):
    run("sample.py", f"--workdir={tmp_path}", "--stage=all", "--prompt=a")


@fault(
    "a type of weights for a folder",
    "--dtype: expected an --output that ends in .gguf, found PATH",
)
def test_dtype_of_a_folder():
    run("export_weights.py", "--output=policy", "--dtype=q8_0")


@fault(
    "only some of the flags for several processes",
    "--process_count: expected with the other flags of several processes, found none",
)
def test_some_of_the_processes():
    run("pretrain.py", "--coordinator=localhost:1234", "--process_id=0")


@fault("a coordinator without a port", "--coordinator: expected HOST:PORT, found 'localhost'")
def test_coordinator():
    run("pretrain.py", "--coordinator=localhost", "--process_id=0", "--process_count=2")


@fault("zero processes", "--process_count: expected at least 1, found 0")
def test_process_count():
    run("pretrain.py", "--coordinator=localhost:1234", "--process_id=0", "--process_count=0")


@fault("a process id that is too large", "--process_id: expected 0 to 1, found 2")
def test_process_id():
    run("pretrain.py", "--coordinator=localhost:1234", "--process_id=2", "--process_count=2")


@fault("no prompt", "--prompt: expected a prompt, here or in standard input, found none")
def test_no_prompt(tmp_path):
    run("sample.py", f"--workdir={tmp_path}", stdin=b"\n\n")


@fault("a prompt that is not UTF-8", "standard input:2: expected UTF-8, found invalid start byte")
def test_prompt_of_bytes(tmp_path):
    run("sample.py", f"--workdir={tmp_path}", stdin=b"the fox\n\xff\n")


@fault(
    "a key that has no effect on a policy",
    "--config.data.max_response: expected one of TEXT, found a key without effect on a policy, which keeps the recipe "
    "that it was trained with; see --help for flags",
)
def test_key_without_effect(tmp_path):
    run("sample.py", f"--workdir={tmp_path}", "--config.data.max_response=5", "--prompt=a")


@fault("a step that is not a number", "--step: expected the step of a checkpoint, or \"best\", found 'last'")
def test_step_of_text(tmp_path):
    run("sample.py", f"--workdir={tmp_path}", "--step=last", "--prompt=a")


@fault("a seed that is not a number", "flag --seed=lucky: TEXT")
def test_seed():
    run("sample.py", "--prompt=a", "--seed=lucky")


@fault("no folder to import weights from", "--source: expected the folder of a model, found none")
def test_empty_source(tmp_path):
    run("import_weights.py", "--source=", f"--workdir={tmp_path}")


@fault("a folder to watch that is not a run", "PATH: expected the folder of a run, found no stage in it")
def test_watch(tmp_path):
    run("watch.py", str(tmp_path))


@fault("no folder to watch", "expected the folder of a run, or several, found none")
def test_watch_nothing():
    run("watch.py")


@fault(
    "no topology",
    "--topology: expected the chips to compile for as CHIP:SHAPE, such as v4:4x4x4, TEXT, found none",
)
def test_no_topology():
    run("plan.py")


@fault(
    "an unknown topology",
    "--topology: expected the chips to compile for as CHIP:SHAPE, such as v4:4x4x4, TEXT, found 'v9:2'",
)
def test_topology():
    run("plan.py", "--topology=v9:2")


@fault(
    "a slice with the wrong number of dimensions",
    "--topology: expected v5p:4x4x4 or another shape of 3 numbers, found 'v5p:8x8'",
)
def test_shape_of_slice():
    run("plan.py", "--topology=v5p:8x8")


@fault("a mesh with another number of chips", "parallel: expected data x fsdp x tensor = 1 devices, found 4 x 1 x 1")
def test_mesh_of_a_plan():
    run("plan.py", "--topology=cpu:1", "--config.parallel.data=4")
