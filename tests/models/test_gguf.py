"""GGUF files: tensors under the names of Hugging Face, queries and keys in its order, and what is refused.

`tests/parity/test_llama_cpp.py` compares what llama.cpp computes from the files that are written here.
"""

import dataclasses

import jax
import numpy as np
import pytest

from instructjax.errors import CheckpointError
from instructjax.models import gguf as written
from instructjax.models import huggingface, pretrained
from instructjax.models.transformer import LanguageModel
from tests import decoders, fakes

gguf = pytest.importorskip("gguf", reason="needs the extra gguf")

CONFIG = dataclasses.replace(decoders.LLAMA, num_layers=2, tied=True, norm_epsilon=1e-5, cache_by_layer=True)
NAMES = {theirs: ours for ours, theirs in {
    "token_embd": "embed_tokens", "output_norm": "norm", "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}.items()}  # fmt: skip


def write(path, tensors, kind="llama", groups=2, add=lambda writer: writer.add_eos_token_id(2), **metadata):
    """Writes a file as llama.cpp's converter does: the pairs of a head's rotation next to each other.

    `add(writer)` adds what is known of the tokenizer.
    """
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(2)
    writer.add_context_length(32)
    writer.add_embedding_length(12)
    writer.add_feed_forward_length(20)
    writer.add_head_count(4)
    if groups:
        writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_key_length(4)
    add(writer)
    for name, value in metadata.items():
        writer.add_string(name.replace("__", "."), value)
    for name, tensor in tensors.items():
        *layer, short = name.removeprefix("model.").removesuffix(".weight").split(".", 2)[-3:]
        layered = name.startswith("model.layers.")
        ours = NAMES[short if layered else ".".join((*layer, short))]
        if ours in ("attn_q", "attn_k") and kind == "llama":
            tensor = tensor.reshape(-1, 2, 2, 12).swapaxes(1, 2).reshape(tensor.shape)
        place = f"blk.{layer[1]}." if layered else ""
        writer.add_tensor(f"{place}{ours}.weight", np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("groups", [2, None])
def test_a_file_has_the_weights_and_the_config_of_the_model(tmp_path, groups):
    config = dataclasses.replace(CONFIG, num_kv_heads=groups)
    params = fakes.params(LanguageModel(config))
    write(tmp_path / "model.gguf", huggingface.tensors_of(params, config), groups=groups)
    described = pretrained.read_config(tmp_path / "model.gguf")
    assert huggingface.config_of(described) == config and described["eos_token_id"] == 2
    back = huggingface.params_of(pretrained.read_tensors(tmp_path / "model.gguf"), config)
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize(
    ("kind", "metadata", "expected"),
    [
        ("gemma2", {}, "general.architecture: expected one of gpt2, llama, qwen2, qwen3, found 'gemma2'"),
        ("llama", {"llama__rope__scaling__type": "yarn"}, "rope.scaling.type: expected none, found yarn; import the "),
    ],
)
def test_unsupported_files_are_refused(tmp_path, kind, metadata, expected):
    write(tmp_path / "model.gguf", {}, kind, **metadata)
    with pytest.raises(CheckpointError) as error:
        pretrained.read_config(tmp_path / "model.gguf")
    assert str(error.value).startswith(f"{tmp_path}/model.gguf: {expected}")


QWEN2 = dataclasses.replace(CONFIG, biases="query_key_value", tied=False)
QWEN3 = dataclasses.replace(CONFIG, query_key_norm="head")
MODELS = {"gpt2": fakes.CONFIG, "untied": dataclasses.replace(fakes.CONFIG, tied=False)}
MODELS |= {"llama": CONFIG, "qwen2": QWEN2, "qwen3": QWEN3}


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_a_written_model_is_read_back_unchanged(tmp_path, config):
    params = fakes.params(LanguageModel(config))
    described = huggingface.describe(config, eos_id=2, pad_id=0)
    tokenizer = {"tokenizer.ggml.eos_token_id": 2}
    written.write(tmp_path / "model.gguf", described, huggingface.tensors_of(params, config), tokenizer)
    found = pretrained.read_config(tmp_path / "model.gguf")
    assert huggingface.config_of(found).function() == config.function() and found["eos_token_id"] == 2
    back = huggingface.params_of(pretrained.read_tensors(tmp_path / "model.gguf"), config)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_a_llama_is_written_as_the_converter_of_llama_cpp_does(tmp_path):
    tensors = huggingface.tensors_of(fakes.params(LanguageModel(CONFIG)), CONFIG)
    written.write(tmp_path / "ours.gguf", huggingface.describe(CONFIG, eos_id=2, pad_id=0), tensors, {})
    write(tmp_path / "theirs.gguf", tensors)
    found, expected = (
        {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / name).tensors}
        for name in ("ours.gguf", "theirs.gguf")
    )
    assert found.keys() == expected.keys()
    for name, data in expected.items():
        np.testing.assert_array_equal(found[name], data)


@pytest.mark.parametrize(("dtype", "error"), [("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 1 / 127), ("q4_0", 1 / 8)])
def test_other_types_round_matrices_only(tmp_path, dtype, error):
    tensors = huggingface.tensors_of(fakes.params(LanguageModel(fakes.CONFIG)), fakes.CONFIG)
    described = huggingface.describe(fakes.CONFIG, eos_id=2, pad_id=0)
    written.write(tmp_path / "model.gguf", described, tensors, {}, dtype)
    found = pretrained.read_tensors(tmp_path / "model.gguf")
    for name, weights in tensors.items():
        is_rounded = weights.ndim == 2 and "wpe" not in name
        assert np.abs(found[name] - weights).max() <= is_rounded * error * np.abs(weights).max()
        assert is_rounded == (not np.array_equal(found[name], weights))


def test_what_cannot_be_written_is_refused(tmp_path):
    tensors = huggingface.tensors_of(fakes.params(LanguageModel(CONFIG)), CONFIG)
    described = huggingface.describe(CONFIG, eos_id=2, pad_id=0)
    with pytest.raises(CheckpointError, match="expected rows of a multiple of 32 weights for q8_0, found model.embed"):
        written.write(tmp_path / "model.gguf", described, tensors, {}, "q8_0")
    with pytest.raises(CheckpointError, match="model_type: expected one of gpt2, llama, qwen2, qwen3 for GGUF, found "):
        written.write(tmp_path / "model.gguf", described | {"model_type": "olmo2"}, tensors, {})
    (tmp_path / "model.gguf").touch()
    with pytest.raises(CheckpointError, match="model.gguf: expected no such file yet, found one"):
        written.write(tmp_path / "model.gguf", described, tensors, {})


def test_damaged_and_missing_files_are_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\1" * 40)
    with pytest.raises(CheckpointError, match="model.gguf: expected a GGUF file, found "):
        pretrained.read_config(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match="other.gguf: expected a GGUF file, found none"):
        pretrained.read_tensors(tmp_path / "other.gguf")


def test_the_license_is_read(tmp_path):
    tensors = huggingface.tensors_of(fakes.params(LanguageModel(CONFIG)), CONFIG)
    for name, add in {"": lambda writer: None, "mit": lambda writer: writer.add_license("mit")}.items():
        write(tmp_path / "model.gguf", tensors, add=add)
        assert pretrained.read_license(tmp_path / "model.gguf") == name
