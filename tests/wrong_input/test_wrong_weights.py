"""Weights to import, and to export"""

import sys

import jax.numpy as jnp
import numpy as np

from instructjax.models import huggingface, pretrained
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.stages import exported, pretrain
from instructjax.stages.run import Run, policy_config
from instructjax.text import export, tokenizer_files
from instructjax.text.sentencepiece import SentencePieceTokenizer
from tests import fakes
from tests.recipes import LINES, changed, recipe, save_checkpoint, save_stage
from tests.wrong_input.fault import fault

TOKENIZER = SentencePieceTokenizer.train(LINES, 290)


def importing(tmp_path, config=(), tensors=(), files=(), without=(), model=LanguageModel, **changes):
    """Imports GPT from a folder in which something differs: of config.json, the tensors, or whole files."""
    recipe_ = recipe(tmp_path)
    folder = tmp_path / "gpt2"
    shape = policy_config(recipe_, TOKENIZER.vocab_size)
    described = huggingface.describe(
        shape, eos_id=TOKENIZER.eos_id, pad_id=TOKENIZER.pad_id, is_reward_model=model is ScalarModel
    )
    arrays = huggingface.tensors_of(fakes.params(model(shape)), shape) | dict(tensors)
    arrays = {name: array for name, array in arrays.items() if array is not None}
    pretrained.write(folder, described | dict(config), arrays, export.pretrained_files(TOKENIZER, 32))
    for name in without:
        (folder / name).unlink()
    for name, content in dict(files).items():
        (folder / name).write_bytes(content((folder / name).read_bytes()) if callable(content) else content)
    given = {"pretrain__import_from": str(folder), "tokenizer__path": str(folder)} | changes
    pretrain.run(Run(changed(recipe_, **given), tmp_path / "run"))


@fault("a missing folder", "PATH: expected the folder of a model, found none")
def test_no_folder(tmp_path):
    importing(tmp_path, pretrain__import_from=str(tmp_path / "nowhere"))


@fault("a file instead of a folder", "PATH: expected the folder of a model, found a file")
def test_a_file(tmp_path):
    importing(tmp_path, pretrain__import_from=str(tmp_path / "text.jsonl"))


@fault(
    "weights without their tokenizer",
    "tokenizer.path: expected the tokenizer that pretrain.import_from comes with, found none",
)
def test_no_tokenizer(tmp_path):
    importing(tmp_path, tokenizer__path="")


@fault("a missing config.json", "PATH: expected config.json, found no such file")
def test_no_config(tmp_path):
    importing(tmp_path, without=["config.json"])


@fault("a config.json that is not JSON", "PATH: expected JSON, found TEXT")
def test_config_of_no_json(tmp_path):
    importing(tmp_path, files={"config.json": b"model_type: gpt2"})


@fault(
    "another kind of model",
    "PATH: model_type: expected one of gpt2, gpt_neox, llama, mistral, qwen2, qwen3, gemma2, gemma3_text, olmo2, "
    "found 'mamba'",
)
def test_other_kind(tmp_path):
    importing(tmp_path, config={"model_type": "mamba"})


@fault(
    "rotary positions whose scaling is unknown",
    "PATH: rope_scaling: rope_type: expected one of default, linear, llama3, yarn, found 'dynamic'",
)
def test_rotary_scaling(tmp_path):
    sizes = {"vocab_size": 290, "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1}
    sizes |= {"intermediate_size": 8, "max_position_embeddings": 32}
    scaling = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    importing(tmp_path, config={"model_type": "llama"} | sizes | scaling)


@fault(
    "an unembedding that a tied model does not have",
    "PATH: lm_head.weight: expected transformer.wte.weight, as tie_word_embeddings is true, found other values; set it "
    "to false to import both",
)
def test_other_unembedding(tmp_path):
    importing(tmp_path, tensors={"lm_head.weight": np.ones((290, 8), np.float32)})


@fault(
    "a GPT-2 with another activation function",
    "PATH: activation_function: expected gelu_new or gelu_pytorch_tanh, found 'relu'",
)
def test_relu(tmp_path):
    importing(tmp_path, config={"activation_function": "relu"})


@fault("a size that is not a number", "PATH: n_inner: expected a positive integer, found 'large'")
def test_size(tmp_path):
    importing(tmp_path, config={"n_inner": "large"})


@fault(
    "a model whose size differs from the recipe's", "PATH: model: expected num_layers 1, found num_layers 1000000000"
)
def test_other_size(tmp_path):
    importing(tmp_path, config={"n_layer": 10**9})


@fault(
    "a tokenizer that does not belong to the weights",
    "tokenizer.path: expected the tokenizer of PATH in which eos_token_id is 5, found one in which it is 1",
)
def test_other_tokenizer(tmp_path):
    importing(tmp_path, config={"eos_token_id": 5})


@fault("missing weights", "PATH: expected model.safetensors or model.safetensors.index.json, found none")
def test_no_weights(tmp_path):
    importing(tmp_path, without=["model.safetensors"])


@fault(
    "pickled weights",
    "PATH: expected model.safetensors or model.safetensors.index.json, found pytorch_model.bin, which is a pickle "
    "and can run code: convert it first",
)
def test_pickles(tmp_path):
    importing(tmp_path, without=["model.safetensors"], files={"pytorch_model.bin": b""})


@fault("an index without file names", "PATH: weight_map: expected a file for each tensor, found ['model.safetensors']")
def test_index_of_no_files(tmp_path):
    importing(tmp_path, files={"model.safetensors.index.json": b'{"weight_map": ["model.safetensors"]}'})


@fault("an index that refers to another folder", "PATH: expected names of safetensors files, found '../a.safetensors'")
def test_index_outside(tmp_path):
    importing(tmp_path, files={"model.safetensors.index.json": b'{"weight_map": {"a": "../a.safetensors"}}'})


@fault(
    "a missing file of the weights",
    "PATH: expected a.safetensors, which model.safetensors.index.json names, found no such file",
)
def test_missing_part(tmp_path):
    importing(tmp_path, files={"model.safetensors.index.json": b'{"weight_map": {"a": "a.safetensors"}}'})


@fault("truncated weights", "PATH: expected a safetensors file, found TEXT")
def test_cut(tmp_path):
    importing(tmp_path, files={"model.safetensors": lambda content: content[:-100]})


@fault(
    "tensors that are missing or have other shapes",
    "PATH: expected transformer.ln_f.bias [8], transformer.wpe.weight [32, 8]; found transformer.ln_f.bias absent, "
    "transformer.wpe.weight [8, 32]; 2 tensors do not fit",
)
def test_tensors(tmp_path):
    importing(
        tmp_path, tensors={"transformer.ln_f.bias": None, "transformer.wpe.weight": np.zeros((8, 32), np.float32)}
    )


@fault("integer weights", "PATH: expected floating-point numbers, found transformer.wpe.weight int8")
def test_integers(tmp_path):
    importing(tmp_path, tensors={"transformer.wpe.weight": np.zeros((32, 8), np.int8)})


@fault("weights that are not finite", "PATH: transformer.ln_f.bias: expected finite numbers, found NaN or infinity")
def test_nan(tmp_path):
    importing(tmp_path, tensors={"transformer.ln_f.bias": np.full(8, np.nan, np.float32)})


@fault(
    "a reward model instead of a language model",
    "PATH: expected a language model, without score.weight, found a reward model, with score.weight",
)
def test_reward_model(tmp_path):
    importing(tmp_path, model=ScalarModel)


@fault(
    "a missing package for weights",
    "expected the package safetensors to read and write weights, found none; pip install 'instructjax[huggingface]'",
)
def test_no_safetensors(tmp_path, monkeypatch):
    for name in ("safetensors", "safetensors.flax"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "model.safetensors").write_bytes(b"")
    pretrained.read_tensors(tmp_path)


@fault(
    "a missing package for GGUF files",
    "expected the package gguf for GGUF files, found none; pip install 'instructjax[gguf]'",
)
def test_no_gguf(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "model.gguf").write_bytes(b"")
    pretrained.read_config(tmp_path / "model.gguf")


@fault("a missing GGUF file", "PATH: expected a GGUF file, found none")
def test_no_gguf_file(tmp_path):
    importing(tmp_path, pretrain__import_from=str(tmp_path / "model.gguf"))


@fault(
    "a model of no family",
    "model.norm: expected 'layer' for gpt2, found 'rms'",
)
def test_no_family(tmp_path):
    exporting(tmp_path, "sft", model__norm="rms")


@fault(
    "a missing package for tokenizers of others",
    "tokenizer: expected the package tokenizers to read tokenizer.json, found none; "
    "pip install 'instructjax[huggingface]'",
)
def test_no_tokenizers(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    tokenizer_files.load(tmp_path)


def exporting(tmp_path, stage, params=None, **changes):
    config = changed(recipe(tmp_path), **changes)
    shape, workdir = policy_config(config, TOKENIZER.vocab_size), tmp_path / "run"
    if params is None:
        save_stage(config, workdir, stage, TOKENIZER)
    else:
        save_checkpoint(config, workdir, stage, TOKENIZER, shape, {"params": params(shape)})
        (workdir / stage / "summary.json").write_text('{"steps": 1}')
    exported.export(Run(config, workdir), stage, tmp_path / "out")


@fault(
    "export to a folder that is not empty",
    "PATH: expected no folder, or an empty one, to write the model to, found other files",
)
def test_full_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("")
    exporting(tmp_path, "sft")


def exporting_gguf(tmp_path, stage, **changes):
    config, workdir = changed(recipe(tmp_path), **changes), tmp_path / "run"
    save_stage(config, workdir, stage, TOKENIZER)
    exported.export_gguf(Run(config, workdir), stage, tmp_path / "out.gguf", "q8_0")


@fault(
    "export of a reward model to GGUF",
    "--stage: expected a policy for GGUF, found reward; export it to a folder",
)
def test_gguf_of_a_reward_model(tmp_path):
    exporting_gguf(tmp_path, "reward")


@fault("export to a file that exists", "PATH: expected no such file yet, found one")
def test_gguf_exists(tmp_path):
    (tmp_path / "out.gguf").touch()
    exporting_gguf(tmp_path, "sft")


@fault(
    "export to GGUF of an unsupported family",
    "model_type: expected one of gpt2, llama, qwen2, qwen3 for GGUF, found gpt_neox",
)
def test_gguf_of_another_family(tmp_path):
    exporting_gguf(tmp_path, "sft", model__positions="rotary", model__parallel_residual=True)


@fault(
    "export to GGUF of scaled rotary frequencies",
    "PATH: model: expected rotary_scaling linear, rotary_factor N, found rotary_scaling , rotary_factor N",
)
def test_gguf_of_scaled_positions(tmp_path):
    llama = {"norm": "rms", "positions": "rotary", "activation": "silu", "gated": True, "biases": "none"}
    choices = llama | {"rotary_scaling": "linear", "rotary_factor": 2.0}
    exporting_gguf(tmp_path, "sft", **{f"model__{name}": value for name, value in choices.items()})


@fault(
    "quantization of rows that are not whole blocks",
    "--dtype: expected rows of a multiple of 32 weights for q8_0, found TEXT",
)
def test_gguf_blocks(tmp_path):
    exporting_gguf(tmp_path, "sft")


@fault(
    "export of local attention, which GPT-2 does not have",
    "model.local_window: expected None for gpt2, found 4",
)
def test_bands(tmp_path):
    exporting(tmp_path, "sft", model__local_window=4)


@fault(
    "export of heads that do not add up to the width",
    "model.d_head: expected 8 for gpt2, found 4",
)
def test_heads(tmp_path):
    exporting(tmp_path, "sft", model__d_head=4)


@fault(
    "export of a reward model whose head is zero",
    "head/kernel: expected weights that can carry the offset N, found a norm of 0",
)
def test_zero_head(tmp_path):
    def params(shape):
        drawn = fakes.params(ScalarModel(shape))
        return drawn | {"head": {"kernel": jnp.zeros(shape.d_model), "bias": jnp.float32(-2.5)}}

    exporting(tmp_path, "reward", params)
