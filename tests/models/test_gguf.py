"""GGUF files: tensors under the names of Hugging Face, queries and keys in its order, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from instructjax.errors import CheckpointError
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
        ("gemma2", {}, "general.architecture: expected one of llama, qwen2, qwen3, found 'gemma2'"),
        ("llama", {"llama__rope__scaling__type": "yarn"}, "rope.scaling.type: expected none, found yarn; import the "),
    ],
)
def test_unsupported_files_are_refused(tmp_path, kind, metadata, expected):
    write(tmp_path / "model.gguf", {}, kind, **metadata)
    with pytest.raises(CheckpointError) as error:
        pretrained.read_config(tmp_path / "model.gguf")
    assert str(error.value).startswith(f"{tmp_path}/model.gguf: {expected}")


def test_damaged_and_missing_files_are_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\1" * 40)
    with pytest.raises(CheckpointError, match="model.gguf: expected a GGUF file, found "):
        pretrained.read_config(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match="other.gguf: expected a GGUF file, found none"):
        pretrained.read_tensors(tmp_path / "other.gguf")
