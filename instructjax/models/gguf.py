"""Reads and writes models in GGUF files, the format of llama.cpp: tensors by Hugging Face's names, and a config.json.

GGUF rotates pairs (2i, 2i + 1) of a head in Llama, Hugging Face and this package pairs (i, i + D/2): the rows of
queries and keys are reordered. GPT-2's matrices are [out, in] here, and [in, out] there.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from instructjax.errors import CheckpointError
from instructjax.models.tensors import FileTensor
from instructjax.typing import AnyArray

# Types of weights that can be written, by their names in llama.cpp, with the number of such a file.
DTYPES: Mapping[str, int] = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q5_0": 8, "q4_0": 2}
_QUANTIZATION_VERSION = 2  # of the blocks of q8_0 and the like


@dataclasses.dataclass(frozen=True)
class _Architecture:
    """How GGUF and Hugging Face name the parts of a kind of model.

    Attributes:
      keys: of config.json, and of the file's metadata after the architecture.
      layers: what names of Hugging Face begin with in a layer, before its number.
      names: of tensors, GGUF's and Hugging Face's, without the layer.
      transposed: those that are [in, out] in Hugging Face.
    """

    keys: Mapping[str, str]
    layers: str
    names: Mapping[str, str]
    transposed: frozenset[str] = frozenset()


_LLAMA = _Architecture(
    keys={
        "num_hidden_layers": "block_count",
        "max_position_embeddings": "context_length",
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
        "rope_theta": "rope.freq_base",
        "head_dim": "attention.key_length",
    },
    layers="model.layers.",
    names={
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
    },
)
_GPT2 = _Architecture(
    keys={
        "n_layer": "block_count",
        "n_positions": "context_length",
        "n_embd": "embedding_length",
        "n_inner": "feed_forward_length",
        "n_head": "attention.head_count",
        "layer_norm_epsilon": "attention.layer_norm_epsilon",
    },
    layers="transformer.h.",
    names={
        "token_embd": "transformer.wte",
        "position_embd": "transformer.wpe",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
        "attn_norm": "ln_1",
        "ffn_norm": "ln_2",
        "attn_qkv": "attn.c_attn",
        "attn_output": "attn.c_proj",
        "ffn_up": "mlp.c_fc",
        "ffn_down": "mlp.c_proj",
    },
    transposed=frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),
)
ARCHITECTURES: Mapping[str, _Architecture] = {"gpt2": _GPT2, "llama": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA}


def read_config(path: epath.PathLike) -> dict[str, Any]:
    """Reads the metadata of a file as a config.json.

    Raises:
      CheckpointError: the file is not a GGUF file, or its architecture is not supported.
    """
    reader = _reader(path)
    found = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.ggml.t")}
    kind, names = found.get("general.architecture"), {tensor.name for tensor in reader.tensors}
    if kind not in ARCHITECTURES:
        raise CheckpointError(
            f"{path}: general.architecture: expected one of {', '.join(ARCHITECTURES)}, found {kind!r:.60}"
        )
    scaling = found.get(f"{kind}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in names:
        raise CheckpointError(
            f"{path}: rope.scaling.type: expected none, found {scaling if scaling != 'none' else 'rope_freqs.weight'}; "
            "import the model from safetensors"
        )
    (rows,) = [len(tensor.data) for tensor in reader.tensors if tensor.name == "token_embd.weight"] or [0]
    return config_of(found, names) | {"vocab_size": rows}


def read_license(path: epath.PathLike) -> str:
    """Reads `general.license` of a file; "" if it has none."""
    field = _reader(path).fields.get("general.license")
    return str(field.contents()) if field else ""


def config_of(metadata: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Converts the metadata of a file of a known architecture to a config.json without the vocabulary's size.

    Args:
      metadata: by full name.
      names: of the file's tensors.
    """
    kind = metadata["general.architecture"]
    keys = {key: f"{kind}.{name}" for key, name in ARCHITECTURES[kind].keys.items()}
    described = {key: _short(metadata[name]) for key, name in keys.items() if name in metadata}
    described |= {"model_type": kind, "tie_word_embeddings": "output.weight" not in names}
    if (eos := metadata.get("tokenizer.ggml.eos_token_id")) is not None:
        described["eos_token_id"] = eos
    return described


def read_tensors(path: epath.PathLike) -> dict[str, FileTensor]:
    """Opens all tensors of a file, under the names that they have in a safetensors file.

    Each is dequantized to float32 when its values are needed.

    Raises:
      CheckpointError: see `read_config`; or a tensor is unknown or, when it is read, cannot be dequantized.
    """
    described = read_config(path)
    kind, tensors = ARCHITECTURES[described["model_type"]], {}
    for tensor in _reader(path).tensors:
        name = _name(tensor.name, kind)
        if name is None:
            raise CheckpointError(f"{path}: expected tensors of a {described['model_type']}, found {tensor.name:.100}")
        shape = tuple(int(size) for size in tensor.shape)  # GGUF's order, from the last axis to the first
        shape = shape if _is_transposed(tensor.name, kind) else shape[::-1]
        read = functools.partial(_dequantized, path, tensor, described)
        tensors[name] = FileTensor(shape, np.dtype(np.float32), read)
    return tensors


def _dequantized(path: epath.PathLike, tensor: Any, described: Mapping[str, Any]) -> np.ndarray:
    """Reads a tensor of a file, in float32 and in Hugging Face's order."""
    try:
        weights = np.array(_package().quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
    except Exception as error:  # kinds of quantization that the package does not know
        found = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: {tensor.name}: expected a known quantization, found {found}") from None
    return _arranged(tensor.name, weights, described, is_read=True)


def metadata_of(described: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a config.json to metadata: the inverse of `config_of`.

    Raises:
      CheckpointError: llama.cpp has the model under another name, or not at all.
    """
    kind = described["model_type"]
    if kind not in ARCHITECTURES:
        raise CheckpointError(f"model_type: expected one of {', '.join(ARCHITECTURES)} for GGUF, found {kind}")
    metadata = {f"{kind}.{name}": described[key] for key, name in ARCHITECTURES[kind].keys.items()}
    if "head_dim" in described:
        metadata[f"{kind}.attention.value_length"] = described["head_dim"]
    return {"general.architecture": kind, **metadata}


def write(
    path: epath.PathLike,
    described: Mapping[str, Any],
    tensors: Mapping[str, AnyArray],
    tokenizer: Mapping[str, Any],
    dtype: str = "f32",
) -> None:
    """Writes a file atomically.

    Args:
      path: the file, which must not exist.
      described: the config.json, from `huggingface.describe`.
      tensors: from `huggingface.tensors_of`.
      tokenizer: metadata by full name, from `text.gguf.metadata_of`.
      dtype: one of `DTYPES`, of all matrices but that of positions, which stays float32 like all vectors.

    Raises:
      CheckpointError: see `metadata_of`; the file exists; or the rows of a matrix are not whole blocks of the type.
    """
    package, path, metadata = _package(), pathlib.Path(path), metadata_of(described)
    if path.exists():
        raise CheckpointError(f"{path}: expected no such file yet, found one")
    kind = ARCHITECTURES[described["model_type"]]
    metadata |= {"general.file_type": DTYPES[dtype], "general.quantization_version": _QUANTIZATION_VERSION}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f".{path.name}.unfinished"
    writer = package.GGUFWriter(unfinished, metadata.pop("general.architecture"))
    for name, value in {**metadata, **tokenizer}.items():
        _add(writer, name, value)
    for theirs, weights in tensors.items():
        name = _gguf_name(theirs, kind)
        weights = np.ascontiguousarray(_arranged(name, np.asarray(weights, np.float32), described, is_read=False))
        is_plain = weights.ndim == 1 or name.startswith("position_embd")
        number = package.GGMLQuantizationType["F32" if is_plain else dtype.upper()]
        block, _ = package.GGML_QUANT_SIZES[number]
        if weights.shape[-1] % block:
            raise CheckpointError(
                f"--dtype: expected rows of a multiple of {block} weights for {dtype}, found {theirs} "
                f"{list(weights.shape)}"
            )
        writer.add_tensor(name, package.quants.quantize(weights, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(path)


def _add(writer: Any, name: str, value: Any) -> None:
    """Adds metadata under its full name, with the type that llama.cpp reads it as."""
    adds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    adds.get(type(value), writer.add_array)(name, value)


def _short(value: Any) -> Any:
    """Returns the shortest decimal of a float32, such as 1e-5 for 9.9999997e-06, as others write it."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _arranged(name: str, weights: np.ndarray, described: Mapping[str, Any], *, is_read: bool) -> np.ndarray:
    """Rearranges a tensor of a file, named as there, to Hugging Face's order if `is_read`, and else from it."""
    part = name.split(".")[-2]
    if _is_transposed(name, ARCHITECTURES[described["model_type"]]):
        return weights.T
    if described["model_type"] != "llama" or part not in ("attn_q", "attn_k"):
        return weights
    heads = described["num_attention_heads"]
    if part == "attn_k":
        heads = described.get("num_key_value_heads", heads)
    pairs = (heads, -1, 2) if is_read else (heads, 2, len(weights) // heads // 2)
    return weights.reshape(*pairs, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def _is_transposed(name: str, kind: _Architecture) -> bool:
    """Returns whether a tensor of a file has its axes in the other order; a vector is its own transpose."""
    return name.split(".")[-2] in kind.transposed


def _name(name: str, kind: _Architecture) -> str | None:
    """Returns the name of a tensor in a safetensors file, or None if it is unknown."""
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if not found or found[2] not in kind.names:
        return None
    layer = "" if found[1] is None else f"{kind.layers}{found[1]}."
    return f"{layer}{kind.names[found[2]]}.{found[3]}"


def _gguf_name(name: str, kind: _Architecture) -> str:
    """Returns the name of a tensor in a GGUF file; the inverse of `_name`."""
    part, _, what = name.rpartition(".")
    place = ""
    if part.startswith(kind.layers):
        layer, _, part = part.removeprefix(kind.layers).partition(".")
        place = f"blk.{layer}."
    (ours,) = [ours for ours, theirs in kind.names.items() if theirs == part]
    return f"{place}{ours}.{what}"


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
            "expected the package gguf for GGUF files, found none; pip install 'instructjax[gguf]'"
        ) from None
    return gguf
