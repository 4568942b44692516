"""Recipes"""

import json
import tempfile

import pytest
from etils import epath

from configs import gsm8k
from instructjax.recipe import check
from instructjax.runs import provenance
from instructjax.sources.registry import make_source
from instructjax.stages.run import Run
from tests.recipes import changed, recipe
from tests.scripts import run
from tests.sources.test_problems import release
from tests.wrong_input.fault import fault


def begin(*flags, script="sft.py", config="configs/sandbox.py:smoke"):
    """Starts a script with these flags, whose error must come before anything is written."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("JAX_PLATFORMS", "cpu")
        return run(script, f"--config={config}", f"--workdir={folder}/run", *flags)


def begin_with(tmp_path, statements, *flags):
    """Starts a script with a recipe file that changes the sandbox's."""
    path = tmp_path / "mine.py"
    body = "\n".join(f"    {line}" for line in statements.splitlines())
    path.write_text(f"from configs import sandbox\ndef get_config():\n    c = sandbox.get_config().unlock()\n{body}\n")
    return begin(f"--workdir={tmp_path}/run", *flags, config=path)


def run_with(tmp_path, **changes):
    """Runs the first stage of a small recipe with other values."""
    _ = Run(changed(recipe(tmp_path), **changes), tmp_path / "run").layout


@fault("a missing file", "--config: expected a recipe, found no file configs/none.py")
def test_no_recipe():
    begin(config="configs/none.py")


@fault("an unknown variant", "configs/sandbox.py: expected no variant, 'smoke' or 'rounds', found 'smoek'")
def test_variant():
    begin(config="configs/sandbox.py:smoek")


@fault("a file that is not Python", "--config: expected a recipe, found SyntaxError: TEXT (PATH:4)")
def test_syntax(tmp_path):
    begin_with(tmp_path, "c.sft.epochs = = 3")


@fault(
    "a recipe that raises an error", "--config: expected a recipe, found ZeroDivisionError: division by zero (PATH:4)"
)
def test_recipe_fails(tmp_path):
    begin_with(tmp_path, "c.sft.epochs = 1 / 0\nreturn c")


@fault("a file without `get_config`", "--config: expected get_config(), found TEXT has no attribute 'get_config'")
def test_no_get_config(tmp_path):
    (tmp_path / "mine.py").write_text("config = {}")
    begin(config=tmp_path / "mine.py")


@fault(
    "a `get_config` without `return`", "--config: expected get_config() of PATH to give a ConfigDict, found NoneType"
)
def test_no_return(tmp_path):
    begin_with(tmp_path, "pass")


@fault("a missing section", "sft: expected a section of the recipe, found none")
def test_no_section(tmp_path):
    begin_with(tmp_path, "del c.sft\nreturn c")


@fault("a missing section of a guest", "dpo: expected a section of the recipe, found none")
def test_no_guest(tmp_path):
    begin(f"--workdir={tmp_path}/run", script="dpo.py")


@fault("a missing key", "sft.epochs: expected more than 0, found no such key in the recipe")
def test_no_key(tmp_path):
    begin_with(tmp_path, "del c.sft.epochs\nreturn c")


@fault("an unknown key of the model", "model.rope: expected one of TEXT, found no such key")
def test_unknown_model_key(tmp_path):
    begin_with(tmp_path, "c.model.rope = True\nreturn c")


@fault("text instead of a number, in a file", "sft.epochs: expected more than 0, found '16'")
def test_text_for_number(tmp_path):
    begin_with(tmp_path, "with c.ignore_type(): c.sft.epochs = '16'\nreturn c")


@fault("a fraction instead of an integer", "ppo.epochs: expected an integer, at least 1, found 1.5")
def test_fraction(tmp_path):
    begin_with(tmp_path, "with c.ignore_type(): c.ppo.epochs = 1.5\nreturn c")


@fault("text instead of a list", "evaluate.guests: expected a list of names, found 'dpo'")
def test_text_for_list(tmp_path):
    begin_with(tmp_path, "with c.ignore_type(): c.evaluate.guests = 'dpo'\nreturn c")


@fault(
    "an unknown key, on the command line",
    "pretrain.stepps: expected a key that the recipe declares, found no such key; did you mean pretrain.steps?",
)
def test_unknown_key():
    begin("--config.pretrain.stepps=1", script="pretrain.py")


@fault(
    "an unknown key, in a file",
    "sft.epoch: expected a key that the recipe declares, found no such key; did you mean sft.epochs?",
)
def test_unknown_key_in_a_file(tmp_path):
    begin_with(tmp_path, "c.sft.epoch = 3\nreturn c")


@fault(
    "a renamed key, on the command line",
    "model.factors: expected model.matmul_dtype, its new name, found the old one",
)
def test_renamed_key():
    begin("--config.model.factors=bfloat16", script="ppo.py")


@fault(
    "a renamed key, in a file",
    "parallel.shard_slots: expected parallel.shard_optimizer_state, its new name, found the old one",
)
def test_renamed_key_in_a_file(tmp_path):
    begin_with(tmp_path, "c.parallel.shard_slots = True\nreturn c")


@fault(
    "a renamed key, in a folder of an earlier version",
    "PATH: model.factors: expected model.matmul_dtype, its new name, found the old one; continue with the version of "
    "instructjax that wrote it, or choose another --workdir",
)
def test_renamed_key_in_a_folder(tmp_path):
    config = recipe(tmp_path)
    before = config.to_dict()
    before["model"]["factors"] = before["model"].pop("matmul_dtype")
    (tmp_path / "config.json").write_text(json.dumps(before))
    provenance.check_config(config, epath.Path(tmp_path / "config.json"), ("seed", "model"))


@fault(
    "a key of a section that the recipe does not have",
    "dpo.beta: expected a recipe with a section dpo, found one without",
)
def test_key_of_another_recipe():
    begin("--config.dpo.beta=0.2")


@fault(
    "a key under the name that other trainers give it",
    "ppo.target_kl: expected a key that the recipe declares, found no such key; did you mean ppo.kl_target?",
)
def test_key_of_another_trainer():
    begin("--config.ppo.target_kl=6", script="ppo.py")


@fault("a single prompt to evaluate on", "evaluate.prompts: expected an integer, at least 2, found 1")
def test_one_prompt():
    begin("--config.evaluate.prompts=1", script="evaluate.py")


@fault(
    "weights that are narrower than what networks compute in",
    "model.param_dtype: expected one of float64, as networks compute in float64 (model.dtype), found 'float32'",
)
def test_param_dtype_of_frozen_weights(tmp_path):
    config = changed(recipe(tmp_path), model__dtype="float64", model__param_dtype="float32")
    check.ppo_section(config, "ppo")


@fault("no epochs of a guest", "dpo.epochs: expected more than 0, found 0.0")
def test_guests_epochs():
    begin("--config.dpo.epochs=0", script="dpo.py", config="configs/dpo.py:smoke")


@fault("an invalid value of a guest", "dpo.beta: expected at least 0, found -1.0")
def test_guests_value():
    begin("--config.dpo.beta=-1", script="dpo.py", config="configs/dpo.py:smoke")


@fault(
    "a batch that is not a whole number of groups",
    "ppo.samples_per_prompt: expected a divisor of ppo.batch_size (8), found 3",
)
def test_samples_per_prompt(tmp_path):
    run_with(tmp_path, ppo__samples_per_prompt=3)


@fault(
    "RLOO with one response to each prompt",
    "ppo.samples_per_prompt: expected at least 2 with ppo.advantages=rloo, found 1",
)
def test_a_group_of_one(tmp_path):
    run_with(tmp_path, ppo__advantages="rloo")


@fault(
    "a warm-up of a value network that there is not",
    "ppo.value_warmup_iterations: expected 0, its default, because ppo.advantages=grpo has no value network, found 3",
)
def test_warmup_without_a_critic(tmp_path):
    run_with(tmp_path, ppo__advantages="grpo", ppo__samples_per_prompt=2, ppo__value_warmup_iterations=3)


@fault(
    "a key of GAE without a value network",
    "ppo.gae_lambda: expected 0.95, its default, because ppo.advantages=rloo has no value network, found 0.9",
)
def test_gae_without_a_critic(tmp_path):
    run_with(tmp_path, ppo__advantages="rloo", ppo__samples_per_prompt=2, ppo__gae_lambda=0.9)


@fault(
    "a warm-up of the value network as long as the run",
    "ppo.value_warmup_iterations: expected less than ppo.iterations (500), found 500",
)
def test_warmup_of_the_whole_run(tmp_path):
    run_with(tmp_path, ppo__value_warmup_iterations=500)


@fault(
    "a reward model that nothing would read",
    "ppo.reward_from: expected no reward model, because ppo.reward_function gives the rewards and ppo.advantages=rloo "
    "has no value network, found runs/other/reward/checkpoints",
)
def test_a_reward_model_without_use(tmp_path):
    keys = {"reward_function": "math:fsum", "reward_from": "runs/other/reward/checkpoints"}
    run_with(
        tmp_path,
        ppo__advantages="rloo",
        ppo__samples_per_prompt=2,
        **{f"ppo__{name}": value for name, value in keys.items()},
    )


@fault("an unknown estimator of advantages", "ppo.advantages: expected one of gae, rloo, grpo, found 'ppo'")
def test_unknown_estimator(tmp_path):
    run_with(tmp_path, ppo__advantages="ppo")


@fault(
    "text instead of a number, on the command line",
    "sft.batch_size: expected an integer, at least 1, found 'many'",
)
def test_value_of_another_type():
    begin("--config.sft.batch_size=many")


@fault(
    "a key that is None in the recipe, on the command line",
    "flag --config.model.local_window: expected a key with a value, found None, which only a recipe file can replace",
)
def test_key_without_a_type():
    begin("--config.model.local_window=4")


@fault("a value for a section, on the command line", "flag --config.sft=3: TEXT")
def test_section_for_value():
    begin("--config.sft=3")


@fault("NaN", "sft.learning_rate: expected at least 0, found nan")
def test_nan():
    begin("--config.sft.learning_rate=nan")


@fault("infinity", "reward.learning_rate: expected at least 0, found inf")
def test_infinity():
    begin("--config.reward.learning_rate=1e999")


@fault("a number that is too large", "ppo.batch_size: expected an integer, at least 1, found N")
def test_a_large_number():
    begin("--config.ppo.batch_size=99999999999999999999")


@fault("a negative learning rate", "ppo.learning_rate: expected at least 0, found -0.1")
def test_negative_rate():
    begin("--config.ppo.learning_rate=-0.1", script="ppo.py")


@fault("a share of 100%", "ppo_init.text_share: expected from 0 to below 1, found 1.0")
def test_share():
    begin("--config.ppo_init.text_share=1", script="ppo.py")


@fault("a seed below 0", "seed: expected an integer from 0 to 2**32 - 2, found -1")
def test_seed():
    begin("--config.seed=-1")


@fault("no records", "files.text: expected a file of Text records for pretrain, found none")
def test_no_files(tmp_path):
    begin(f"--workdir={tmp_path / 'run'}", config="configs/own.py", script="pretrain.py")


@fault("no folder of the E2E data", "e2e.directory: expected the folder of all data sets, found none; see docs/e2e.md")
def test_no_e2e(tmp_path):
    begin(f"--workdir={tmp_path}", config="configs/e2e.py:smoke", script="pretrain.py")


@fault(
    "no folder of GSM8K",
    "gsm8k.directory: expected the folder with train.jsonl and test.jsonl, found none; see docs/verifiable_rewards.md",
)
def test_no_gsm8k(tmp_path):
    make_source(gsm8k.get_config()).write(epath.Path(tmp_path))


@fault("a folder without GSM8K", "PATH: expected the GSM8K file train.jsonl or train.jsonl.gz, found neither")
def test_no_file_of_gsm8k(tmp_path):
    make_source(changed(gsm8k.get_config(), gsm8k__directory=str(tmp_path))).write(epath.Path(tmp_path))


@fault(
    "a stage whose records the source does not have",
    "ppo_ptx: expected Text records, found none; this source has none",
)
def test_no_text_of_gsm8k(tmp_path):
    Run(release(tmp_path), tmp_path / "run").require("ppo_ptx")


@fault(
    "two sources of records",
    "expected one of the sections files, sandbox, e2e, gsm8k, arithmetic, found files and sandbox",
)
def test_two_sources(tmp_path):
    config = recipe(tmp_path).unlock()
    config.sandbox = {}
    _ = Run(config, tmp_path / "run").layout


@fault(
    "a batch that does not divide over the devices",
    "sft.batch_size: expected a multiple of 24 (8 devices x 3 parts), such as 24, found 8",
)
def test_batch_and_devices(tmp_path):
    run_with(tmp_path, sft__microbatches=3)


@fault(
    "a batch that does not divide into minibatches",
    "ppo.batch_size: expected a multiple of ppo.minibatch_size (8), found 12",
)
def test_minibatches(tmp_path):
    run_with(tmp_path, ppo__batch_size=12)


@fault(
    "more widths of prompts than halves",
    "ppo.rollout_widths: expected at most 5, as data.max_prompt is 16, found 6",
)
def test_rollout_widths(tmp_path):
    run_with(tmp_path, ppo__rollout_widths=6)


@fault(
    "several widths of prompts with refilling",
    "ppo.rollout_widths: expected at most 1 with ppo.rollout_refill, found 2",
)
def test_rollout_widths_with_refilling(tmp_path):
    run_with(tmp_path, ppo__rollout_widths=2, ppo__rollout_refill=2)


@fault(
    "episodes packed into minibatches that are one part",
    "ppo.microbatches: expected at least 2 with ppo.pack_episodes, which skips the microbatches that no episode is "
    "left for, found 1",
)
def test_packed_in_one_part(tmp_path):
    run_with(tmp_path, ppo__pack_episodes=True)


@fault(
    "sequences longer than the context",
    "model.max_length: expected at least data.max_prompt + data.max_response = 28 tokens, found 20",
)
def test_context(tmp_path):
    run_with(tmp_path, model__max_length=20)


@fault("windows longer than the context", "pretrain.length: expected at most model.max_length (32), found 64")
def test_windows(tmp_path):
    run_with(tmp_path, pretrain__length=64)


@fault("splits that leave nothing for training", "data.validation + data.test: expected less than 1, found 1.2")
def test_splits(tmp_path):
    run_with(tmp_path, data__validation=0.6, data__test=0.6)


@fault("an unknown dtype", "model.dtype: expected one of float32, bfloat16, float16, float64, found 'fp16'")
def test_dtype(tmp_path):
    run_with(tmp_path, model__dtype="fp16")


@fault(
    "an unknown matmul dtype",
    'model.matmul_dtype: expected "" or one of float32, bfloat16, float16, float64, found TEXT',
)
def test_matmul_dtype(tmp_path):
    run_with(tmp_path, model__matmul_dtype="int8")


@fault("an unknown dtype of rollouts", "ppo.rollout_dtype: expected \"\" or one of int8, int8xint8, found 'int4'")
def test_rollout_dtype(tmp_path):
    run_with(tmp_path, ppo__rollout_dtype="int4")


@fault(
    "weights in half precision",
    "model.param_dtype: expected float32 or float64, because bfloat16 rounds away updates of 1e-5, found 'bfloat16'; "
    "to compute in bfloat16, set model.dtype",
)
def test_param_dtype(tmp_path):
    run_with(tmp_path, model__param_dtype="bfloat16")


@fault("float64 without JAX_ENABLE_X64", "model.dtype: expected JAX_ENABLE_X64=1 with float64, found it off")
def test_float64(tmp_path):
    run_with(tmp_path, model__dtype="float64")


@fault("an unknown parallel mode", "parallel.mode: expected one of jit, pmap, found 'xmap'")
def test_parallel(tmp_path):
    run_with(tmp_path, parallel__mode="xmap")


@fault(
    "a mesh with more devices than there are", "parallel: expected data x fsdp x tensor = 8 devices, found 3 x 1 x 1"
)
def test_mesh(tmp_path):
    run_with(tmp_path, parallel__data=3, parallel__fsdp=1)


@fault(
    "a mesh for `pmap`",
    "parallel.mode: expected jit for a mesh of data=-1, fsdp=2, tensor=1, found pmap, which has data only: "
    "8 devices, each with all weights",
)
def test_mesh_for_pmap(tmp_path):
    run_with(tmp_path, parallel__mode="pmap", parallel__fsdp=2)


@fault(
    "a model that does not divide over the mesh",
    "parallel.tensor: expected a divisor of model.num_heads (1), such as 1, found 2",
)
def test_model_and_mesh(tmp_path):
    run_with(tmp_path, parallel__tensor=2)


@fault("an unknown action of the guards", "guards.action: expected one of stop, warn, found 'pray'")
def test_guards(tmp_path):
    run_with(tmp_path, guards__action="pray")


@fault("an unknown action of the invariants", "invariants: expected one of stop, warn, found 'ignore'")
def test_invariants(tmp_path):
    run_with(tmp_path, invariants="ignore")


@fault("metrics that are logged too rarely", "log.every: expected an integer from 1 to 30, found 100")
def test_log(tmp_path):
    run_with(tmp_path, log__every=100)


@fault(
    "evaluations between two lines of the log",
    "ppo_log.evaluate_every: expected a multiple of ppo_log.every (2), found 5",
)
def test_evaluate_every(tmp_path):
    run_with(tmp_path, ppo_log__every=2, ppo_log__evaluate_every=5)


@fault("more labelers than there are", "sandbox.raters: expected 2 to the 20 labelers of the smaller group, found 21")
def test_raters():
    begin("--config.sandbox.raters=21")


@fault(
    "a policy that answers twice",
    "comparisons.stages: expected 1 to 4 stages (comparisons.min_answers), each once, found ('sft', 'sft')",
)
def test_comparisons_stages(tmp_path):
    run_with(tmp_path, comparisons__stages=("sft", "sft"))


@fault(
    "fewer prompts than rounds need",
    "sandbox.reward_prompts: expected at least 700 (comparisons.skip + comparisons.prompts), found 600",
)
def test_prompts_of_rounds():
    begin("--config.comparisons.skip=500")


@fault("more answers than a ranking may have", "comparisons.max_answers: expected an integer from 2 to 32, found 33")
def test_max_answers(tmp_path):
    run_with(tmp_path, comparisons__max_answers=33)


@fault(
    "a pattern of kernels that matches none",
    "lora.matrices: expected patterns of attention/query, attention/key, attention/value, attention/out, "
    "feed_forward/in, feed_forward/out, found 'attention/q'",
)
def test_adapted_matrices(tmp_path):
    run_with(tmp_path, lora__rank=2, lora__matrices=("attention/value", "attention/q"))


@fault(
    "adapters that are wider than their kernel",
    "lora.rank: expected at most 8, the smaller side of attention/query, found 9",
)
def test_rank(tmp_path):
    run_with(tmp_path, lora__rank=9)


@fault(
    "adapters on one base in networks of different sizes",
    'reward.size: expected "", the policy\'s, because the networks of PPO share one base (lora.one_base), '
    "found 'small'",
)
def test_one_base_of_two_sizes(tmp_path):
    run_with(tmp_path, lora__rank=2, reward__size="small", reward__init_from="elsewhere")


REWARDS = """
import sys, time
def one(prompts, responses): return [1.0]
def none(prompts, responses): return [None for _ in responses]
def text(prompts, responses): return ["Score: 7" for _ in responses]
def nan(prompts, responses): return [float("nan") for _ in responses]
def huge(prompts, responses): return [1e39 for _ in responses]
def fails(prompts, responses): return len(missing)
def exits(prompts, responses): sys.exit(1)
def hangs(prompts, responses): time.sleep(10_000)
number = 7
"""


def reward_function(tmp_path, name):
    (tmp_path / "my_wrong_rewards.py").write_text(REWARDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        run_with(
            tmp_path, ppo__reward_function=name, ppo__reward_timeout_seconds=0.1 if name.endswith("hangs") else 0.0
        )


@fault("a reward that is not the name of a function", "ppo.reward_function: expected MODULE:FUNCTION, found 'math'")
def test_reward_name(tmp_path):
    reward_function(tmp_path, "math")


@fault(
    "a missing reward function", "ppo.reward_function: expected 'math:sevn' to be found, found: AttributeError: TEXT"
)
def test_reward_missing(tmp_path):
    reward_function(tmp_path, "math:sevn")


@fault("a reward that is not a function", "ppo.reward_function: expected a function, found my_wrong_rewards:number = 7")
def test_reward_number(tmp_path):
    reward_function(tmp_path, "my_wrong_rewards:number")


EACH = "expected a finite number for each of 2 responses, found"
ONE = "expected a finite number of float32 for the response TEXT, found"


@fault(
    "a reward function that raises an error",
    f"ppo.reward_function: PATH:fails: {EACH} NameError: name TEXT (my_wrong_rewards.py:N); the first response is TEXT",
)
def test_reward_fails(tmp_path):
    reward_function(tmp_path, "my_wrong_rewards:fails")


@fault(
    "a reward function that ends the program",
    f"ppo.reward_function: PATH:exits: {EACH} sys.exit(1) (my_wrong_rewards.py:N); the first response is TEXT",
)
def test_reward_exits(tmp_path):
    reward_function(tmp_path, "my_wrong_rewards:exits")


@fault(
    "a reward function that exceeds its time limit",
    "ppo.reward_function: PATH:hangs: expected a finite number for each of 2 responses within 0.1 s "
    "(reward_timeout_seconds), found no answer",
)
def test_reward_hangs(tmp_path):
    reward_function(tmp_path, "my_wrong_rewards:hangs")


@fault("rewards for some of the responses only", f"ppo.reward_function: PATH:one: {EACH} 1: [1.0]")
def test_reward_count(tmp_path):
    reward_function(tmp_path, "my_wrong_rewards:one")


@fault("a reward that is None", f"ppo.reward_function: PATH:none: {ONE} None")
def test_reward_none(tmp_path):
    reward_function(tmp_path, "my_wrong_rewards:none")


@fault("a reward that is text", f"ppo.reward_function: PATH:text: {ONE} 'Score: 7'")
def test_reward_text(tmp_path):
    reward_function(tmp_path, "my_wrong_rewards:text")


@fault("a reward that is NaN", f"ppo.reward_function: PATH:nan: {ONE} nan")
def test_reward_nan(tmp_path):
    reward_function(tmp_path, "my_wrong_rewards:nan")


@fault("a reward that is too large for float32", f"ppo.reward_function: PATH:huge: {ONE} 1e+39")
def test_reward_huge(tmp_path):
    reward_function(tmp_path, "my_wrong_rewards:huge")
