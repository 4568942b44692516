"""Converts weights and configs of known families to and from the format of Hugging Face.

`families` has a table of names for each family; `pretrained` reads and writes the files. Both sides compute the same
function, so a model that is exported and imported again has the same bits and gives the same logits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from instructjax.errors import CheckpointError, ConfigError
from instructjax.models.config import TransformerConfig
from instructjax.models.families import gemma2, gemma3, gpt2, gpt_neox, llama, mistral, olmo2, qwen2, qwen3
from instructjax.models.families.family import ONE_ROW, SAME, Described, Family, Table
from instructjax.models.tensors import ShardedWeight, Tensor, first_rows, read_finite
from instructjax.models.transformer import LanguageModel, ScalarModel, abstract_params
from instructjax.typing import Params, Tree

Tensors: TypeAlias = Mapping[str, Tensor]  # by their names in a safetensors file

# A model is exported as the first that computes its function.
FAMILIES: Mapping[str, Family] = {
    module.FAMILY.model_type: module.FAMILY
    for module in (gpt2, gpt_neox, llama, mistral, qwen2, qwen3, gemma2, gemma3, olmo2)
}
HEADS: Table = {"lm_head.weight": (SAME, ("unembedding",)), "score.weight": (ONE_ROW, ("head/kernel",))}
OFFSET = "score_offset"  # the key of config.json that has the offset of a reward model whose norms have no bias

_BUFFERS = re.compile(r".*\.(attn|attention)\.(masked_)?bias$|.*rotary_emb\.inv_freq$")  # that old files keep
_OLD_NAMES = {"embed_out.weight": "lm_head.weight"}  # of GPT-NeoX


def config_of(described: Described, where: str = "config.json") -> TransformerConfig:
    """Converts a config.json to the config of a model that computes in float32.

    Raises:
      CheckpointError: a key is missing, or its value is not supported.
    """
    kind = described.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise CheckpointError(f"{where}: model_type: expected one of {', '.join(FAMILIES)}, found {kind!r:.60}")
    try:
        return FAMILIES[kind].config(described, where)
    except ConfigError as error:  # sizes that do not fit together
        raise CheckpointError(f"{where}: {error}") from None


def family_of(config: TransformerConfig) -> Family:
    """Returns the family of a model: the first that computes the same function.

    Raises:
      CheckpointError: no family computes it. The error names a choice that the nearest family does not have.
    """
    nearest: tuple[int, str] | None = None
    for family in FAMILIES.values():
        try:
            other = family.config(family.described(config), "config.json")
        except (CheckpointError, ConfigError):  # the sizes do not fit into the family's config.json
            continue
        expected, found = other.function(), config.function()
        wrong = [name for name in expected | found if expected.get(name) != found.get(name)]
        if not wrong:
            return family
        name = next((name for name in found if name in wrong), wrong[0])
        error = f"model.{name}: expected {expected.get(name)!r} for {family.model_type}, found {found.get(name)!r}"
        if nearest is None or len(wrong) < nearest[0]:
            nearest = (len(wrong), error)
    if nearest is None:
        raise CheckpointError(f"model.d_model: expected a multiple of num_heads, found {config.d_model}")
    raise CheckpointError(nearest[1])


def describe(
    config: TransformerConfig,
    *,
    eos_id: int | tuple[int, ...],
    pad_id: int,
    bos_id: int | None = None,
    is_reward_model: bool = False,
) -> dict[str, Any]:
    """Converts the config of a model to a config.json; the inverse of `config_of`.

    Args:
      config: of the model.
      eos_id: of the tokens that end a response, the tokenizer's first.
      pad_id: the tokenizer's.
      bos_id: the tokenizer's; None for the first EOS, as in GPT-2.
      is_reward_model: a sequence classifier with one label, and not a causal language model.

    Raises:
      CheckpointError: see `family_of`.
    """
    family, ends = family_of(config), eos_id if isinstance(eos_id, tuple) else (eos_id,)
    described = {
        "architectures": [family.classifier if is_reward_model else family.language_model],
        "model_type": family.model_type,
        **family.described(config),
        "bos_token_id": ends[0] if bos_id is None else bos_id,
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends),
        "pad_token_id": pad_id,
        "torch_dtype": "float32",
    }
    if is_reward_model:
        described |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    return described


def params_of(
    tensors: Tensors,
    config: TransformerConfig,
    where: str = "model.safetensors",
    abstract: Callable[[Tree], Tree] = lambda shapes: shapes,
) -> Params:
    """Converts tensors to the parameters of a LanguageModel, or of a ScalarModel if there is a `score.weight`.

    Tensors are read one by one, and converted on the host. A device gets only its shards.

    Args:
      tensors: by name, with or without the family's prefix, of any float type.
      config: of the model. Its vocabulary may be smaller than theirs, which is often padded to
        a round number; the extra rows are left out.
      where: the file, for errors.
      abstract: adds a sharding to each shape of a tree, such as `parallel.abstract`. A weight without one is placed as
        `jnp.asarray` does.

    Raises:
      CheckpointError: a name is missing or unknown, a shape does not fit, a number is not finite, or a tied unembedding
        differs from the embedding. The error shows both sides.
    """
    family = family_of(config)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name = _OLD_NAMES.get(name, name)
        if not _BUFFERS.match(name):
            found[name if name in HEADS else family.prefix + name.removeprefix(family.prefix)] = tensor
    is_scalar = "score.weight" in found
    ours = _abstract_params(config, is_scalar)
    names = _named(family, ours)
    (embedding,) = (name for name, (_, paths) in names.items() if paths == ("trunk/token_embedding",))
    for name in (embedding, "lm_head.weight"):
        if name in found and found[name].ndim == 2 and found[name].shape[0] > config.vocab_size:
            found[name] = first_rows(found[name], config.vocab_size)
    if is_scalar:
        found.pop("lm_head.weight", None)  # unused by a reward model
    elif config.tied and (copy := found.pop("lm_head.weight", None)) is not None:
        if embedding in found and not np.array_equal(np.asarray(copy), np.asarray(found[embedding])):
            raise CheckpointError(
                f"{where}: lm_head.weight: expected {embedding}, as tie_word_embeddings is true, found other values; "
                "set it to false to import both"
            )
    _check(found, _shapes(ours, names, config), where)
    return flax.traverse_util.unflatten_dict(_placed(found, abstract(ours), names, config, where), sep="/")


def tensors_of(params: Params, config: TransformerConfig) -> dict[str, np.ndarray]:
    """Converts the parameters of a LanguageModel or ScalarModel to float32 tensors; the inverse of `params_of`.

    Their reward model has no bias. Our score is w h + c, where h = s x + b is the output of the final norm, which only
    the head reads. With b + c w / |w|^2 instead of b, w h is the same score. If the norm has no b, c is left out:
    `score_offset` returns it, for config.json.

    Raises:
      CheckpointError: w is 0, or so small that no b gives the score c; see also `family_of`.
    """
    family = family_of(config)
    flat = flax.traverse_util.flatten_dict(jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params), sep="/")
    if "head/bias" in flat and config.norm == "layer":
        flat["trunk/final_norm/bias"] = _with_offset(flat)
    tensors = {}
    for name, (layout, paths) in _named(family, _abstract_params(config, "head/kernel" in flat)).items():
        for i, one in enumerate(_names_of(name, config)):
            weights = [flat[path][i] if "{}" in name else flat[path] for path in paths]
            tensors[one] = np.ascontiguousarray(layout.join(weights, config))
    return tensors


def score_offset(params: Params, config: TransformerConfig) -> dict[str, float]:
    """Returns what config.json must keep of a reward model's offset: nothing if a norm's bias has it."""
    return {} if config.norm == "layer" else {OFFSET: float(params["head"]["bias"])}


def with_score_offset(params: Params, described: Described, where: str = "config.json") -> Params:
    """Returns parameters with the offset of a reward model that config.json has, if it has one.

    Raises:
      CheckpointError: it is not a finite number.
    """
    offset = described.get(OFFSET)
    if offset is None or "head" not in params:
        return params
    if not isinstance(offset, int | float) or not np.isfinite(offset):
        raise CheckpointError(f"{where}: {OFFSET}: expected a finite number, found {offset!r:.60}")
    zero = params["head"]["bias"]
    sharding = zero.sharding if zero.committed else None
    bias = ShardedWeight(jax.ShapeDtypeStruct(zero.shape, zero.dtype, sharding=sharding))
    bias.fill(np.asarray(offset))
    return {**params, "head": {**params["head"], "bias": bias.place()}}


def check_fit(found: TransformerConfig, expected: TransformerConfig, where: str) -> None:
    """Raises an error if the model in a folder does not have the shape that a recipe expects.

    Raises:
      CheckpointError: they differ in more than a padded vocabulary, or a shorter context of rotary positions. The
        error shows both sides.
    """
    there, here = found.function(), expected.function()
    wrong = [name for name in here | there if name not in ("vocab_size", "max_length")]
    wrong = [name for name in wrong if there.get(name) != here.get(name)]
    shorter_fits = expected.positions == "rotary" and found.max_length > expected.max_length
    if found.max_length != expected.max_length and not shorter_fits:
        wrong.append("max_length")
    if found.vocab_size < expected.vocab_size:
        wrong.append("vocab_size")
    if wrong:
        sides = [", ".join(f"{name} {getattr(side, name)}" for name in wrong) for side in (expected, found)]
        raise CheckpointError(f"{where}: model: expected {sides[0]}, found {sides[1]}")


def _with_offset(flat: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the bias of the final norm that adds a reward model's offset to its scores."""
    kernel, bias = (flat[f"head/{name}"].astype(np.float64) for name in ("kernel", "bias"))
    square = np.sum(kernel**2)
    with np.errstate(over="ignore"):
        moved = (flat["trunk/final_norm/bias"] + bias * kernel / (square or np.inf)).astype(np.float32)
    if not square or not np.isfinite(moved).all():
        raise CheckpointError(
            f"head/kernel: expected weights that can carry the offset {bias:.4g}, found a norm of {square**0.5:.4g}"
        )
    return moved


def _abstract_params(config: TransformerConfig, is_scalar: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and types of our weights by path."""
    params = abstract_params((ScalarModel if is_scalar else LanguageModel)(config))
    return flax.traverse_util.flatten_dict(params, sep="/")


def _named(family: Family, ours: Collection[str]) -> Table:
    """Returns the part of the family's table that a model with these weights has, with full names."""
    table = {f"{family.prefix}{name}": entry for name, entry in family.table.items()} | dict(HEADS)
    return {name: entry for name, entry in table.items() if set(entry[1]) <= set(ours)}


def _names_of(name: str, config: TransformerConfig) -> list[str]:
    return [name.format(layer) for layer in range(config.num_layers)] if "{}" in name else [name]


def _shapes(
    ours: Mapping[str, jax.ShapeDtypeStruct], names: Table, config: TransformerConfig
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of their tensors by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (layout, paths) in names.items():
        one_layer = [ours[path].shape[1:] if "{}" in name else ours[path].shape for path in paths]
        weights = [np.broadcast_to(np.float32(0), shape) for shape in one_layer]
        shapes |= dict.fromkeys(_names_of(name, config), layout.join(weights, config).shape)
    return shapes


def _check(found: Tensors, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raises CheckpointError if names, shapes or types do not fit. Reads no tensor."""
    wrong = sorted(
        name
        for name in found.keys() | shapes.keys()
        if name not in found or tuple(found[name].shape) != shapes.get(name)
    )
    if wrong:
        expected = ", ".join(f"{name:.100} {list(shapes[name]) if name in shapes else 'absent'}" for name in wrong[:4])
        there = ", ".join(f"{name:.100} {list(found[name].shape) if name in found else 'absent'}" for name in wrong[:4])
        raise CheckpointError(f"{where}: expected {expected}; found {there}; {len(wrong)} tensors do not fit")
    if numbers := sorted(name for name, tensor in found.items() if not jnp.issubdtype(tensor.dtype, jnp.floating)):
        raise CheckpointError(f"{where}: expected floating-point numbers, found {numbers[0]} {found[numbers[0]].dtype}")


def _placed(
    found: Tensors, ours: Mapping[str, jax.ShapeDtypeStruct], names: Table, config: TransformerConfig, where: str
) -> dict[str, jax.Array]:
    """Reads their tensors, which fit, and returns our weights by path; see `params_of`."""
    params: dict[str, jax.Array] = {}
    for name, (layout, paths) in names.items():
        weights = [ShardedWeight(ours[path]) for path in paths]
        for layer, one in enumerate(_names_of(name, config)):
            # Each process reads all values, so that a damaged file is an error in all of them.
            parts = layout.split(read_finite(found[one], f"{where}: {one}"), config)
            for weight, part in zip(weights, parts, strict=True):
                weight.fill(np.asarray(part), layer if "{}" in name else None)
        params |= {path: weight.place() for path, weight in zip(paths, weights, strict=True)}
    if "head/bias" in ours:
        bias = ShardedWeight(ours["head/bias"])
        bias.fill(np.zeros(()))
        params["head/bias"] = bias.place()
    return params
