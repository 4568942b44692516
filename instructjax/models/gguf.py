"""Reads models in GGUF files: dequantized tensors under the names of Hugging Face, and a config.json.

GGUF rotates pairs (2i, 2i + 1) of a head in Llama, Hugging Face and this package pairs (i, i + D/2): the rows of
queries and keys are reordered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from instructjax.errors import CheckpointError

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_KEYS = {  # of config.json, and of the file's metadata after the architecture
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "head_dim": "attention.key_length",
}


def read_config(path: epath.PathLike) -> dict[str, Any]:
    """Reads the metadata of a file as a config.json.

    Raises:
      CheckpointError: the file is not a GGUF file, or its architecture is not supported.
    """
    reader = _reader(path)
    found = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.ggml.t")}
    kind = found.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise CheckpointError(
            f"{path}: general.architecture: expected one of {', '.join(ARCHITECTURES)}, found {kind!r:.60}"
        )
    scaling = found.get(f"{kind}.rope.scaling.type", "none")
    names = {tensor.name for tensor in reader.tensors}
    if scaling != "none" or "rope_freqs.weight" in names:
        raise CheckpointError(
            f"{path}: rope.scaling.type: expected none, found {scaling if scaling != 'none' else 'rope_freqs.weight'}; "
            "import the model from safetensors"
        )
    described = {key: _short(found[f"{kind}.{name}"]) for key, name in _KEYS.items() if f"{kind}.{name}" in found}
    (rows,) = [len(tensor.data) for tensor in reader.tensors if tensor.name == "token_embd.weight"] or [0]
    described |= {"model_type": kind, "vocab_size": rows, "tie_word_embeddings": "output.weight" not in names}
    if (eos := found.get("tokenizer.ggml.eos_token_id")) is not None:
        described["eos_token_id"] = eos
    return described


def read_tensors(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Reads all tensors of a file in float32, under the names that they have in a safetensors file.

    Raises:
      CheckpointError: see `read_config`; or a tensor is unknown or cannot be dequantized.
    """
    described = read_config(path)
    package, tensors = _package(), {}
    for tensor in _reader(path).tensors:
        name = _name(tensor.name)
        if name is None:
            raise CheckpointError(f"{path}: expected tensors of a {described['model_type']}, found {tensor.name:.100}")
        try:
            weights = np.array(package.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        except Exception as error:  # kinds of quantization that the package does not know
            found = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path}: {tensor.name}: expected a known quantization, found {found}") from None
        tensors[name] = _reordered(name, weights, described) if described["model_type"] == "llama" else weights
    return tensors


def _short(value: Any) -> Any:
    """Returns the shortest decimal of a float32, such as 1e-5 for 9.9999997e-06, as others write it."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _reordered(name: str, weights: np.ndarray, described: Mapping[str, Any]) -> np.ndarray:
    """Moves the second of each pair of rows of a head into its second half."""
    found = re.search(r"\.(q|k)_proj\.", name)
    if not found:
        return weights
    heads = described["num_attention_heads"]
    if found[1] == "k":
        heads = described.get("num_key_value_heads", heads)
    return weights.reshape(heads, -1, 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def _name(name: str) -> str | None:
    """Returns the name of a tensor in a safetensors file, or None if it is unknown."""
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if not found or found[2] not in _NAMES:
        return None
    layer = "" if found[1] is None else f"model.layers.{found[1]}."
    return f"{layer}{_NAMES[found[2]]}.{found[3]}"


def _reader(path: epath.PathLike) -> Any:
    path = epath.Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a GGUF file, found none")
    try:
        return _package().GGUFReader(path)
    except CheckpointError:
        raise
    except Exception as error:  # of any class, for damaged files
        raise CheckpointError(f"{path}: expected a GGUF file, found {' '.join(str(error).split())[:200]}") from None


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise CheckpointError(
            "expected the package gguf to read GGUF files, found none; pip install 'instructjax[gguf]'"
        ) from None
    return gguf
