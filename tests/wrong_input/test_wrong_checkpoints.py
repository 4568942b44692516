"""Checkpoints and the folder of a run"""

import dataclasses
import shutil
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from instructjax import files
from instructjax.models.transformer import LanguageModel
from instructjax.records import SPLITS, Ranking
from instructjax.reporting import watch
from instructjax.runs import checkpoint
from instructjax.runs.schedule import Schedule
from instructjax.stages import comparisons, evaluate, ppo, pretrain, reward, sft, trained
from instructjax.stages.run import Run, policy_config
from instructjax.text.sentencepiece import SentencePieceTokenizer
from tests import fakes, small_disks
from tests.recipes import LINES, changed, opened, recipe, save_adapters, save_checkpoint, save_stage
from tests.scripts import run
from tests.wrong_input.fault import fault


@pytest.fixture
def pretrained(tmp_path):
    """Returns (config, workdir) with prepared data and a pretraining that looks finished."""
    config, workdir = recipe(tmp_path), tmp_path / "run"
    layout = Run(config, workdir).layout
    save_stage(config, workdir, "pretrain", layout.tokenizer)
    return config, workdir


def damage(path, change):
    """Changes the largest file of a folder."""
    file = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    file.write_bytes(change(file.read_bytes()))


@fault("a missing predecessor of a stage", "PATH: expected the finished stage pretrain, found none")
def test_no_stage(tmp_path):
    sft.run(Run(recipe(tmp_path), tmp_path / "run"))


@fault("an unfinished predecessor of a stage", "PATH: expected the finished stage pretrain, found an unfinished one")
def test_unfinished_stage(pretrained):
    config, workdir = pretrained
    (workdir / "pretrain" / "summary.json").unlink()
    sft.run(Run(config, workdir))


@fault(
    "an evaluation before an SFT checkpoint is selected",
    "PATH: expected the choice among the checkpoints of sft, found none",
)
def test_no_selection(pretrained):
    evaluate.evaluate(Run(*pretrained, "name"))


@fault("a missing folder of checkpoints", "PATH: expected a directory of checkpoints, found none")
def test_no_directory(pretrained):
    config, workdir = pretrained
    sft.run(Run(changed(config, sft__init_from=str(workdir / "nowhere")), workdir))


@fault("an empty folder of checkpoints", "PATH: expected a checkpoint, found an empty directory")
def test_empty_directory(tmp_path):
    checkpoint.read_meta(tmp_path)


@fault(
    "the folder of a stage instead of its checkpoints",
    "PATH: expected a checkpoint, found none; did you mean PATH?",
)
def test_folder_above(pretrained):
    config, workdir = pretrained
    sft.run(Run(changed(config, sft__init_from=str(workdir / "pretrain")), workdir))


@fault(
    "the folder of a run instead of the checkpoints of a stage",
    "PATH: expected a checkpoint, found the folder of a run; did you mean PATH?",
)
def test_folder_of_a_run(pretrained):
    config, workdir = pretrained
    sft.run(Run(changed(config, sft__init_from=str(workdir)), workdir))


@fault(
    "the folder of one checkpoint instead of that of all",
    "PATH: expected a checkpoint, found none; did you mean PATH?",
)
def test_folder_below(pretrained):
    config, workdir = pretrained
    sft.run(Run(changed(config, sft__init_from=str(workdir / "pretrain" / "checkpoints" / "1")), workdir))


@fault("an empty folder with the name of a step", "PATH: expected a checkpoint, found an empty directory")
def test_empty_step(tmp_path):
    (tmp_path / "checkpoints" / "999").mkdir(parents=True)
    checkpoint.read_meta(tmp_path / "checkpoints")


@fault("fewer iterations than are done", "PATH: ppo.iterations: expected at least the 9 that are done, found 3; TEXT")
def test_fewer_iterations(tmp_path):
    schedule = Schedule.from_config(recipe(tmp_path).ppo_log, steps=3, section="ppo_log", key="ppo.iterations")
    schedule.check_done(epath.Path("runs/sandbox/ppo"), done=9)


@fault(
    "an SFT checkpoint that another reward model has chosen",
    "PATH: expected the choice of the reward model HASH, found that of 00000000; run experiments/reward.py or "
    "reproduce.py again",
)
def test_choice_of_another_reward_model(pretrained):
    config, workdir = pretrained
    save_stage(config, workdir, "reward", Run(config, workdir).layout.tokenizer)
    (workdir / "sft").mkdir()
    files.write_json(workdir / "sft" / "selected.json", {"step": 1, "reward": {}, "reward_model": "0" * 8})
    evaluate.evaluate(Run(config, workdir, "name"))


@fault(
    "a policy whose stage has saved nothing", "PATH: expected a checkpoint of the stage ppo, found those of pretrain"
)
def test_no_saved_policy(pretrained):
    Run(*pretrained).open_policy("ppo")


@fault("a missing step", "PATH: expected step 3, found only 1")
def test_step(pretrained):
    _, workdir = pretrained
    checkpoint.read_meta(workdir / "pretrain" / "checkpoints", step=3)


@fault("a file instead of a folder of checkpoints", "PATH: expected a directory of checkpoints, found a file")
def test_a_file(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    checkpoint.Checkpoints(tmp_path / "checkpoints")


@fault(
    "a checkpoint of a model of another size",
    "PATH: params/TEXT: expected float32[TEXT], found float32[TEXT]; N of N arrays do not fit this model",
)
def test_size(pretrained):
    config, workdir = pretrained
    sft.run(Run(changed(config, model__d_model=16), workdir))


@fault("a checkpoint with another number of heads", "PATH: model.num_heads: expected 2, found a model with 1")
def test_heads(pretrained):
    config, workdir = pretrained
    sft.run(Run(changed(config, model__num_heads=2, model__d_head=4), workdir))


@fault(
    "a checkpoint of a language model instead of a reward model",
    "PATH: params/TEXT: expected TEXT, found nothing; TEXT",
)
def test_kind(pretrained):
    config, workdir = pretrained
    _, layout = trained.open_policy(workdir / "pretrain" / "checkpoints")
    shape = policy_config(config, layout.tokenizer.vocab_size)
    trained.load_reward_model(workdir / "pretrain" / "checkpoints", shape, layout.tokenizer)


@fault("a part that the state does not have", "PATH: policy/ema: expected policy in the state, found only params")
def test_part(pretrained):
    config, workdir = pretrained
    _, layout = trained.open_policy(workdir / "pretrain" / "checkpoints")
    shape = policy_config(config, layout.tokenizer.vocab_size)
    save_checkpoint(config, workdir, "ppo", layout.tokenizer, shape, {"params": fakes.params(LanguageModel(shape))})
    trained.open_policy(workdir / "ppo" / "checkpoints")


@fault(
    "a checkpoint of an older version, which does not name its stage",
    "PATH: expected a checkpoint of instructjax 0.3 or later, which names its stage, found an older one; train the "
    "stage again, or read it with the version that wrote it",
)
def test_older_version(pretrained):
    config, workdir = pretrained
    layout = Run(config, workdir).layout
    shape = policy_config(config, layout.tokenizer.vocab_size)
    meta = checkpoint.describe(config.to_dict(), dataclasses.asdict(shape), layout.tokenizer)
    with checkpoint.Checkpoints(workdir / "old") as checkpoints:
        checkpoints.save(1, {"params": fakes.params(LanguageModel(shape))}, meta=meta)
    sft.run(Run(changed(config, sft__init_from=str(workdir / "old")), workdir))


@fault(
    "a checkpoint whose network has a value of an older version",
    "PATH: model.remat: expected one of none, dense, offload, attention, all, found True",
)
def test_older_value(pretrained):
    config, workdir = pretrained
    layout = Run(config, workdir).layout
    shape = policy_config(config, layout.tokenizer.vocab_size)
    meta = opened(config, workdir, "pretrain").meta(shape, layout.tokenizer)
    meta["model"]["remat"] = True
    with checkpoint.Checkpoints(workdir / "old") as checkpoints:
        checkpoints.save(1, {"params": fakes.params(LanguageModel(shape))}, meta=meta)
    sft.run(Run(changed(config, sft__init_from=str(workdir / "old")), workdir))


@fault(
    "a checkpoint of a reward model instead of a policy",
    "PATH: expected the checkpoint of a policy, found one of the stage reward, which has none",
)
def test_reward_model_as_policy(pretrained):
    config, workdir = pretrained
    layout = Run(config, workdir).layout
    save_stage(config, workdir, "reward", layout.tokenizer)
    sft.run(Run(changed(config, sft__init_from=str(workdir / "reward" / "checkpoints")), workdir))


@fault("a checkpoint with another tokenizer", "PATH: expected a checkpoint with tokenizer HASH, found HASH")
def test_tokenizer(pretrained, tmp_path):
    config, workdir = pretrained
    SentencePieceTokenizer.train(["other words of another text"] * 9, 290).save(tmp_path / "other.model")
    given = {"tokenizer__path": str(tmp_path / "other.model")}
    start = str(workdir / "pretrain" / "checkpoints")
    sft.run(Run(changed(config, sft__init_from=start, **given), tmp_path / "other"))


@fault(
    "a stage that began with another tokenizer",
    "PATH: expected the tokenizer that the stage began with (HASH), found HASH; choose another --workdir",
)
def test_other_tokenizer(tmp_path):
    path = tmp_path / "tokenizer.model"
    SentencePieceTokenizer.train(LINES, 290).save(path)
    config = changed(recipe(tmp_path), tokenizer__path=str(path), pretrain__steps=1, pretrain__warmup_steps=1)
    pretrain.run(Run(config, tmp_path / "run"))
    (tmp_path / "run" / "pretrain" / "summary.json").unlink()  # as if it had been killed
    SentencePieceTokenizer.train(["other words of another text"] * 9, 290).save(path)
    pretrain.run(Run(config, tmp_path / "run"))


@fault("a flipped bit in the arrays", "PATH: params/TEXT: expected the digest TEXT HASH, found TEXT HASH")
def test_flipped_bit(tmp_path):
    state = {"params": fakes.language_model()[1]}
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, meta={})
    seen = []
    for file in sorted(file for file in tmp_path.rglob("*") if file.is_file() and file.stat().st_size):
        content = file.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 20)):
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            try:
                checkpoint.restore_params(tmp_path, state["params"])
            except checkpoint.DamagedCheckpointError as error:
                if "digest" in str(error):
                    raise
                seen.append(str(error))
        file.write_bytes(content)
    raise AssertionError(seen)


@fault("truncated arrays", "PATH: expected readable arrays, found TEXT")
def test_cut(pretrained):
    config, workdir = pretrained
    damage(workdir / "pretrain" / "checkpoints" / "1" / "state", lambda content: content[: len(content) // 2])
    sft.run(Run(config, workdir))


@fault("a change in the metadata of a checkpoint", "PATH: expected content with the sha256 HASH, found HASH")
def test_meta(pretrained):
    config, workdir = pretrained
    damage(
        workdir / "pretrain" / "checkpoints" / "1" / "meta",
        lambda content: content.replace(b'"num_layers": 1', b'"num_layers": 2'),
    )
    sft.run(Run(config, workdir))


@fault("a missing file in a checkpoint", "PATH: expected in the checkpoint, found no such file")
def test_missing_file(pretrained):
    config, workdir = pretrained
    (workdir / "pretrain" / "checkpoints" / "1" / "meta" / "metadata").unlink()
    sft.run(Run(config, workdir))


@fault(
    "no undamaged checkpoint to resume from",
    "PATH: expected TEXT, found TEXT; no other checkpoint is whole: remove PATH",
)
def test_none_whole(pretrained):
    config, workdir = pretrained
    damage(workdir / "pretrain" / "checkpoints" / "1" / "state", lambda content: content[: len(content) // 2])
    shape = policy_config(config, SentencePieceTokenizer.load(workdir / "data" / "tokenizer.model").vocab_size)
    template = {"params": fakes.params(LanguageModel(shape))}
    with checkpoint.Checkpoints(workdir / "pretrain" / "checkpoints") as checkpoints:
        checkpoints.restore(template)


@fault(
    "a stage that began with other records",
    "PATH: demonstrations: expected the records that the stage began with (HASH), found HASH; choose another --workdir",
)
def test_other_records(pretrained):
    config, workdir = pretrained
    save_stage(config, workdir, "sft", SentencePieceTokenizer.load(workdir / "data" / "tokenizer.model"))
    files.write_json(workdir / "sft" / "config.json", config.to_dict())
    files.write_json(workdir / "sft" / "began.json", {"records": {"demonstrations": "0" * 16}, "code": "0"})
    sft.run(Run(config, workdir))


@fault(
    "a stage that began with other values",
    "PATH: tokenizer.vocab_size: expected 290, as the stage began with, found 291; choose another --workdir",
)
def test_other_values(pretrained):
    config, workdir = pretrained
    sft.run(Run(changed(config, tokenizer__vocab_size=291), workdir))


@fault(
    "rankings that are changed after they were added to a run",
    "PATH: expected the rankings that were added to this run (HASH), found HASH; restore the file, or choose another "
    "--workdir",
)
def test_changed_rankings(tmp_path):
    run = Run(changed(recipe(tmp_path), files__rankings=""), tmp_path / "run")
    given = [
        Ranking(prompt=line, responses=("a", "b"), scores=(1.0, 0.0), split=SPLITS[i % 3])
        for i, line in enumerate(LINES)
    ]
    comparisons.add(run, given, given[:3])
    assert Run(run.config, run.workdir).has(Ranking)
    path = run.data_folder / "heldout_rankings.jsonl"
    path.write_text(path.read_text().replace("fox", "owl"))
    _ = Run(run.config, run.workdir).layout


@fault("a truncated JSON file of a run", "PATH: expected JSON that a run wrote, found TEXT")
def test_cut_json(pretrained):
    config, workdir = pretrained
    (workdir / "data" / "checked.json").write_text('{"demonstrations": {"wh')
    sft.run(Run(config, workdir))


@fault("a damaged line of metrics", "PATH:N: expected a JSON object, found TEXT")
def test_metrics(pretrained):
    _, workdir = pretrained
    (workdir / "pretrain" / "metrics.jsonl").write_text('{"step": 1}\n\0\0\0\0\n{"step": 2}\n')
    watch.render([workdir])


@fault("damaged prepared records", "PATH: expected a prepared data set, found a damaged one (TEXT); remove PATH")
def test_damaged_records(pretrained):
    config, workdir = pretrained
    (workdir / "data" / "demonstrations" / "1.0.0" / "dataset_info.json").write_text("{")
    sft.run(Run(config, workdir))


@fault(
    "truncated prepared records",
    "PATH: expected a prepared data set, found a damaged one (TEXT); remove PATH",
)
def test_cut_records(pretrained):
    config, workdir = pretrained
    for file in (workdir / "data" / "demonstrations").rglob("*.array_record*"):
        file.write_bytes(file.read_bytes()[:100])
    sft.run(Run(config, workdir))


@fault("a truncated cost.json", "PATH: expected JSON that a run wrote, found TEXT")
def test_cut_cost(pretrained):
    config, workdir = pretrained
    (workdir / "cost.json").write_text('{"pretrain": {"sec')
    try:
        sft.run(Run(config, workdir))
    finally:
        assert not (workdir / "sft").exists()


@fault(
    "a folder `data` with other files",
    "PATH: expected no such folder, to prepare records in, found files that no run put there; choose another --workdir",
)
def test_own_files(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "text.jsonl").write_text('{"text": "years of work"}\n')
    try:
        run("pretrain.py", "--config=configs/sandbox.py:smoke", f"--workdir={tmp_path}")
    finally:
        assert (tmp_path / "data" / "text.jsonl").read_text() == '{"text": "years of work"}\n'


@fault("a file instead of the folder of a run", "PATH: expected a folder that can be written to, found: File exists")
def test_workdir_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    run("pretrain.py", f"--workdir={tmp_path}/run")


@fault("a read-only file system", "PATH: expected a folder that can be written to, found: Read-only file system")
def test_read_only(tmp_path):
    with small_disks.mounted(tmp_path / "disk", "ro") as disk:
        run("pretrain.py", f"--workdir={disk}/run")


@fault("a full disk", "PATH: expected to write a checkpoint, found TEXT")
def test_full_disk(tmp_path):
    with small_disks.mounted(tmp_path / "disk", "size=200k") as disk:
        with checkpoint.Checkpoints(disk / "checkpoints") as checkpoints:
            checkpoints.save(1, {"w": np.random.default_rng(0).normal(size=100_000)}, meta={})


@fault("two runs in one folder", "PATH: expected a folder without another run, found one of process N")
def test_two_runs(tmp_path):
    holder = (
        "import sys, time\nfrom instructjax.runs import lock\n"
        "with lock.hold(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        run("pretrain.py", f"--workdir={tmp_path}")
    finally:
        process.kill()
        process.wait()


ADAPTERS = {"lora__rank": 2, "lora__alpha": 4.0}


@pytest.fixture
def adapted(pretrained):
    """Returns (config, workdir) with adapters of rank 2 that look like those of SFT and of PPO's initial policy."""
    config, workdir = changed(pretrained[0], **ADAPTERS), pretrained[1]
    for stage in ("sft", "ppo_init"):
        save_adapters(config, workdir, stage)
    return config, workdir


@fault(
    "a base of adapters that was trained again",
    "PATH: TEXT: expected the base of the adapters, TEXT, found TEXT",
)
def test_other_base(adapted):
    config, workdir = adapted
    shutil.rmtree(workdir / "pretrain" / "checkpoints")
    save_stage(config, workdir, "pretrain", Run(config, workdir).layout.tokenizer, seed=1)
    Run(config, workdir).load_start("sft")


@fault("adapters of another rank than the recipe's", "PATH: lora.rank: expected 3, found adapters with 2")
def test_other_rank(adapted):
    config, workdir = adapted
    reward.run(Run(changed(config, lora__rank=3), workdir))


@fault(
    "adapters in the state of a guest that does not say where their base is",
    "lora.rank: expected 0 for the stage sft, which trains adapters with a step of its own and does not say where "
    "their base is (Stage.train_with, base), found more",
)
def test_no_base(adapted):
    run = Run(*adapted)
    state = {"params": run.load_start("sft")}
    schedule = Schedule.from_config(run.config.log, steps=1)
    opened(*adapted, "sft").train_with(lambda *given: given, state, lambda: None, schedule=schedule)


@fault(
    "a reward model with its own trunk and networks that share one base",
    "PATH: lora.one_base: expected a reward model with adapters on the policy's base, PATH, found one without "
    "adapters; lora.one_base=False holds its trunk, too",
)
def test_own_trunk(adapted):
    config, workdir = adapted
    save_stage(config, workdir, "reward", Run(config, workdir).layout.tokenizer)
    ppo.run(Run(config, workdir))
