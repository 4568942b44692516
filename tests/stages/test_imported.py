"""Stages that import weights, and exported weights: the same networks on both sides."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.data import layouts
from instructjax.errors import CheckpointError, ConfigError, TokenizerError
from instructjax.models import huggingface, pretrained
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.records import Demonstration
from instructjax.rollout import episode
from instructjax.stages import exported, pretrain, reward, trained
from instructjax.stages.run import Run, policy_config
from instructjax.text import export, tokenizer_files
from instructjax.text.sentencepiece import SentencePieceTokenizer
from instructjax.text.special_tokens import END_OF_TEXT
from tests import fakes
from tests.recipes import LINES, changed, recipe, save_checkpoint

pytest.importorskip("safetensors", reason="needs the extra huggingface")
tokenizers = pytest.importorskip("tokenizers", reason="needs the extra huggingface")


def byte_pairs():
    pairs = tokenizers.ByteLevelBPETokenizer()
    lines = [*LINES, *(f"{line}\n\n\n" for line in LINES)]
    pairs.train_from_iterator(lines, vocab_size=290, special_tokens=[END_OF_TEXT], show_progress=False)
    return tokenizer_files.from_bytes(pairs.to_str().encode())


PIECES, PAIRS = SentencePieceTokenizer.train(LINES, 290), byte_pairs()


def folder_of(path, config, tokenizer, kind=LanguageModel, changes=(), **config_changes):
    """Writes a model, with `changes` to config.json. Returns (parameters, folder)."""
    shape = dataclasses.replace(policy_config(config, tokenizer.vocab_size), **config_changes)
    params = fakes.params(kind(shape), noise=0.2)
    described = huggingface.describe(
        shape, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, is_reward_model=kind is ScalarModel
    )
    files = export.pretrained_files(tokenizer, shape.max_length)
    pretrained.write(path, described | dict(changes), huggingface.tensors_of(params, shape), files)
    return params


def importing(config, stage, source):
    return changed(config, **{f"{stage}__import_from": str(source), "tokenizer__path": str(source)})


def assert_identical(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), found, expected)


@pytest.fixture(scope="module", params=[PIECES, PAIRS], ids=["pieces", "byte pairs"])
def run(request, tmp_path_factory):
    """Imports a GPT with either tokenizer. Returns (config, workdir, its parameters)."""
    folder = tmp_path_factory.mktemp("run")
    config = changed(recipe(folder), data__separator="\n\n", data__strict=False)
    params = folder_of(folder / "gpt2", config, request.param)
    config = importing(config, "pretrain", folder / "gpt2")
    pretrain.run(Run(config, folder / "run"))
    return config, folder / "run", params


def test_the_stage_has_the_weights_and_the_tokenizer(run, tmp_path):
    config, workdir, params = run
    found, layout = trained.open_policy(workdir / "pretrain" / "checkpoints")
    assert_identical(found.params, params)
    assert layout.tokenizer.fingerprint == tokenizer_files.load(config.tokenizer.path).fingerprint
    (line,) = [json.loads(line) for line in (workdir / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(line["text_loss"])
    exported.export(Run(config, workdir), "pretrain", tmp_path / "out")
    before, after = (pretrained.read_tensors(path) for path in (config.pretrain.import_from, tmp_path / "out"))
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (workdir.parent / "gpt2" / name).read_bytes()


def test_a_llama_goes_through_a_stage_unchanged(tmp_path):
    choices = {"norm": "rms", "positions": "rotary", "activation": "silu", "gated": True, "biases": "none"}
    sizes = {"num_heads": 4, "num_kv_heads": 2, "d_head": 4, "tied": False}
    config = changed(recipe(tmp_path), **{f"model__{name}": value for name, value in (choices | sizes).items()})
    folder_of(tmp_path / "llama", config, PIECES, max_length=64)  # twice the recipe's context
    config = importing(config, "pretrain", tmp_path / "llama")
    pretrain.run(Run(config, tmp_path / "run"))
    exported.export(Run(config, tmp_path / "run"), "pretrain", tmp_path / "out")
    before, after = (pretrained.read_tensors(tmp_path / name) for name in ("llama", "out"))
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    assert pretrained.read_config(tmp_path / "out")["max_position_embeddings"] == 32
    other = policy_config(changed(config, model__rotary_base=5e5), PIECES.vocab_size)
    with pytest.raises(CheckpointError, match="model.rotary_base: expected 500000.0, found a model with 10000.0"):
        trained.load_policy(
            tmp_path / "run" / "pretrain" / "checkpoints", other, tokenizer_files.load(config.tokenizer.path)
        )


def test_a_gguf_file_gives_weights_tokenizer_and_chat_template(tmp_path):
    pytest.importorskip("gguf", reason="needs the extra gguf")
    from tests.models import test_gguf as weights
    from tests.text import test_gguf_tokenizers as text

    tokenizer = text.KINDS["smollm"]
    shape = dataclasses.replace(weights.CONFIG, vocab_size=tokenizer.get_vocab_size())
    params = fakes.params(LanguageModel(shape), noise=0.2)
    file = tmp_path / "model.gguf"
    tensors = huggingface.tensors_of(params, shape)
    weights.write(file, tensors, add=lambda writer: text.add_tokenizer(writer, "smollm", eos=2))
    config = changed(recipe(tmp_path), data__template="chat", data__strict=False, data__max_prompt=20, parallel__fsdp=1)
    config = changed(
        config, **{f"model__{name}": getattr(shape, name) for name in config.model if hasattr(shape, name)}
    )
    config = importing(config, "pretrain", file)
    pretrain.run(Run(config, tmp_path / "run"))
    found, layout = trained.open_policy(tmp_path / "run" / "pretrain" / "checkpoints")
    assert_identical(found.params, params)
    start, end = tokenizer.token_to_id("<|im_start|>"), tokenizer.token_to_id("<|im_end|>")
    words = tokenizer_files.load(file).encode("owl <|im_end|>")
    assert layout.encode_prompt("owl <|im_end|>") == [start, *words, end, start]
    assert layout.eos_ids == (end, tokenizer.token_to_id(END_OF_TEXT))
    exported.export(Run(config, tmp_path / "run"), "pretrain", tmp_path / "out")
    assert tokenizer_files.load(tmp_path / "out").fingerprint == layout.tokenizer.fingerprint
    assert pretrained.read_config(tmp_path / "out")["eos_token_id"] == [0, end]


def test_an_interrupted_import_resumes(run):
    config, workdir, _ = run
    summary = workdir / "pretrain" / "summary.json"
    before = summary.read_bytes()
    pretrain.run(Run(config, workdir))  # it is finished
    summary.unlink()
    pretrain.run(Run(config, workdir))
    assert summary.read_bytes() == before


def scores(workdir, prompt, responses):
    found, layout = trained.open_reward_model(workdir / "reward" / "checkpoints")
    rows = [layouts.demonstration_row([Demonstration(prompt=prompt, response=text)], layout) for text in responses]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    return np.asarray(episode.score(found.model, found.params, batch.tokens, batch.segments, batch.positions))


@pytest.fixture(scope="module")
def rewarded(run):
    """Returns the same, with a reward model whose offset is not 0."""
    config, workdir, _ = run
    tokenizer = tokenizer_files.load(config.tokenizer.path)
    shape = policy_config(config, tokenizer.vocab_size)
    params = fakes.params(ScalarModel(shape))
    params["head"]["bias"] = jnp.float32(-2.5)
    save_checkpoint(config, workdir, "reward", tokenizer, shape, {"params": params})
    (workdir / "reward" / "summary.json").write_text('{"steps": 1}')
    return config, workdir


TEXTS = ["the fox", "the owl in a red", "by night\n\n"]


def test_an_exported_and_imported_reward_model_has_the_same_scores(rewarded, tmp_path):
    config, workdir = rewarded
    exported.export(Run(config, workdir), "reward", tmp_path / "out")
    reward.run(Run(importing(changed(config, pretrain__import_from=""), "reward", tmp_path / "out"), tmp_path / "run"))
    found, expected = (scores(folder, "the forest", TEXTS) for folder in (tmp_path / "run", workdir))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected) > 0.01
    (line,) = [json.loads(line) for line in (tmp_path / "run/reward/metrics.jsonl").read_text().splitlines()]
    assert 0 <= line["validation_accuracy"] <= 1


def report(capsys, what, found, expected):
    error = float(np.abs(found - expected).max())
    with capsys.disabled():
        print(f"\n  {what}: largest difference {error:.1e}, largest value {np.abs(expected).max():.1f}", end="")
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parity
def test_transformers_gives_the_same_score_to_the_same_text(rewarded, tmp_path, capsys):
    """Their tokenizer encodes prompt and response as one text, and pads the batch."""
    torch = pytest.importorskip("torch", reason="needs the extra parity")
    transformers = pytest.importorskip("transformers", reason="needs the extra parity")
    config, workdir = rewarded
    exported.export(Run(config, workdir), "reward", tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval().double()
    texts = [f"the forest{config.data.separator}{text}{tokenizer.eos_token}" for text in TEXTS]
    with torch.no_grad():
        found = theirs(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0].numpy()
    report(capsys, "scores of texts", found, scores(workdir, "the forest", TEXTS))


@pytest.mark.parity
def test_transformers_gives_the_same_logits_to_the_same_text(run, tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="needs the extra parity")
    transformers = pytest.importorskip("transformers", reason="needs the extra parity")
    config, workdir, _ = run
    exported.export(Run(config, workdir), "pretrain", tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval().double()
    found, layout = trained.open_policy(workdir / "pretrain" / "checkpoints")
    text = f"the forest{config.data.separator}the owl{tokenizer.eos_token}"
    with torch.no_grad():
        expected = theirs(**tokenizer(text, return_tensors="pt")).logits[0].numpy()
    ids = np.array([[*layout.encode_prompt("the forest"), *layout.encode_response("the owl")]], np.int32)
    logits, _ = found.model.apply({"params": found.params}, ids, np.ones_like(ids), np.arange(ids.size)[None])
    report(capsys, "logits of a text", np.asarray(logits[0]), expected)


def refused(kind, function, *arguments):
    with pytest.raises(kind) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("error", "given", "message"),
    [
        (CheckpointError, {"num_layers": 2}, "model: expected num_layers 1, found num_layers 2"),
        (CheckpointError, {"tied": False}, "model: expected tied True, found tied False"),
        (CheckpointError, {"kind": ScalarModel}, "expected a language model, without score.weight, found a reward"),
        (CheckpointError, {"changes": {"n_positions": 31}}, "model: expected max_length 32, found max_length 31"),
        (CheckpointError, {"changes": {"vocab_size": 289}}, "model: expected vocab_size 290, found vocab_size 289"),
        (
            TokenizerError,
            {"changes": {"eos_token_id": 5}},
            "in which eos_token_id is 5, found one in which it is 1",
        ),
        (TokenizerError, {"changes": {"eos_token_id": [5, 6]}}, "in which eos_token_id is [5, 6], found"),
    ],
)
def test_a_model_that_does_not_fit_is_rejected_before_any_work(tmp_path, error, given, message):
    config = recipe(tmp_path)
    folder_of(tmp_path / "gpt2", config, PIECES, **given)
    found = refused(error, pretrain.run, Run(importing(config, "pretrain", tmp_path / "gpt2"), tmp_path / "run"))
    assert message in found and f"{tmp_path}/gpt2" in found
    assert not (tmp_path / "run" / "data").exists() and not (tmp_path / "run" / "pretrain").exists()


def test_a_language_model_is_rejected_as_a_reward_model(tmp_path):
    config = recipe(tmp_path)
    folder_of(tmp_path / "gpt2", config, PIECES)
    found = refused(CheckpointError, reward.run, Run(importing(config, "reward", tmp_path / "gpt2"), tmp_path / "run"))
    assert found.endswith("expected a reward model, with score.weight, found a language model, without score.weight")


def test_imported_weights_need_their_tokenizer(tmp_path):
    config = changed(recipe(tmp_path), pretrain__import_from="anywhere")
    found = refused(ConfigError, pretrain.run, Run(config, tmp_path / "run"))
    assert found == "tokenizer.path: expected the tokenizer that pretrain.import_from comes with, found none"


def test_weights_that_are_not_finite_are_rejected_before_any_work(tmp_path):
    config = recipe(tmp_path)
    shape = policy_config(config, PIECES.vocab_size)
    params = fakes.params(LanguageModel(shape))
    params["trunk"]["final_norm"]["bias"] = jnp.full(8, jnp.nan)
    described = huggingface.describe(shape, eos_id=PIECES.eos_id, pad_id=PIECES.pad_id)
    files = export.pretrained_files(PIECES, shape.max_length)
    pretrained.write(tmp_path / "gpt2", described, huggingface.tensors_of(params, shape), files)
    config = importing(config, "pretrain", tmp_path / "gpt2")
    found = refused(CheckpointError, pretrain.run, Run(config, tmp_path / "run"))
    assert found == f"{tmp_path}/gpt2: transformer.ln_f.bias: expected finite numbers, found NaN or infinity"
    assert not (tmp_path / "run").exists()
