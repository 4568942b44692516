"""The eight models of GPT-3's Table 2.1 (Brown et al. 2020) and their parameter counts.

InstructGPT uses three of them: XL ("1.3B"), 6.7B (called "6B" in the paper) and 175B.

Every model has d_model = num_heads * d_head, but two rows of the printed table violate
this. They are corrected to agree with the parameter count of the row:

- XL: 24 heads of 128 would make 3072, not 2048. Here it has 16 heads of 128.
- 13B: a width of 5140 is not 40 heads of 128. Here it is 5120.
"""

from __future__ import annotations

import dataclasses
import re
import types
from typing import Any

from instructjax.errors import ConfigError
from instructjax.models.config import TransformerConfig

VOCAB_SIZE = 50_257  # GPT-2's byte pair encoding, which GPT-3 keeps
MAX_LENGTH = 2048  # section 2.1
_LAYERS_BY_WIDTH = re.compile(r"([1-9]\d*)x([1-9]\d*)")


@dataclasses.dataclass(frozen=True)
class Size:
    """One row of Table 2.1.

    Attributes:
      parameters: the nominal number of parameters.
      num_layers: L.
      d_model: width of the residual stream.
      num_heads: H.
      d_head: D.
      batch_tokens: number of tokens in a pretraining batch.
      learning_rate: the peak learning rate of pretraining.
    """

    parameters: float
    num_layers: int
    d_model: int
    num_heads: int
    d_head: int
    batch_tokens: float
    learning_rate: float


SIZES = types.MappingProxyType(
    {
        "small": Size(125e6, 12, 768, 12, 64, 0.5e6, 6.0e-4),
        "medium": Size(350e6, 24, 1024, 16, 64, 0.5e6, 3.0e-4),
        "large": Size(760e6, 24, 1536, 16, 96, 0.5e6, 2.5e-4),
        "xl": Size(1.3e9, 24, 2048, 16, 128, 1e6, 2.0e-4),
        "2.7b": Size(2.7e9, 32, 2560, 32, 80, 1e6, 1.6e-4),
        "6.7b": Size(6.7e9, 32, 4096, 32, 128, 2e6, 1.2e-4),
        "13b": Size(13.0e9, 40, 5120, 40, 128, 2e6, 1.0e-4),
        "175b": Size(175.0e9, 96, 12288, 96, 128, 3.2e6, 0.6e-4),
    }
)


def gpt3_config(size: str, **changes: Any) -> TransformerConfig:
    """Returns the model of one row of Table 2.1, with d_ff = 4 d_model.

    Args:
      size: a key of `SIZES`.
      **changes: other values for fields of `TransformerConfig`, such as `dtype`. The
        defaults are VOCAB_SIZE, MAX_LENGTH and dense attention in every layer, because
        the paper does not give the width of its local bands.

    Raises:
      ConfigError: there is no such size, or no such field.
    """
    if size not in SIZES:
        raise ConfigError(f"size: expected one of {', '.join(SIZES)}, found {size!r}")
    names = {field.name for field in dataclasses.fields(TransformerConfig)}
    if unknown := sorted(changes.keys() - names):
        raise ConfigError(f"{unknown[0]}: expected one of {', '.join(sorted(names))}, found {unknown[0]!r}")
    row = SIZES[size]
    config = TransformerConfig(
        vocab_size=VOCAB_SIZE,
        num_layers=row.num_layers,
        d_model=row.d_model,
        num_heads=row.num_heads,
        d_head=row.d_head,
        d_ff=4 * row.d_model,
        max_length=MAX_LENGTH,
    )
    return dataclasses.replace(config, **changes)


def is_size(name: str) -> bool:
    """Returns whether a text names a size: a key of `SIZES`, or "LAYERSxWIDTH" such as "2x64"."""
    return name in SIZES or _LAYERS_BY_WIDTH.fullmatch(name) is not None


def resized(config: TransformerConfig, size: str) -> TransformerConfig:
    """Changes the size of a model, but keeps its vocabulary, context and arithmetic. No heads share keys.

    Args:
      config: the model.
      size: a key of `SIZES`; "LAYERSxWIDTH" for that many layers with heads of the model's width and
        d_ff = 4 d_model; "" keeps the model's own size.

    Raises:
      ConfigError: the size is unknown, or its width is not a multiple of the width of the model's heads.
    """
    if not size:
        return config
    if found := _LAYERS_BY_WIDTH.fullmatch(size):
        layers, width = map(int, found.groups())
        if width % config.d_head:
            raise ConfigError(f"size: expected a width that is a multiple of d_head ({config.d_head}), found {size!r}")
        heads = width // config.d_head
        shape: dict[str, Any] = {"num_layers": layers, "d_model": width, "num_heads": heads, "d_ff": 4 * width}
    else:
        row = dataclasses.asdict(gpt3_config(size))
        shape = {name: row[name] for name in ("num_layers", "d_model", "num_heads", "d_head", "d_ff")}
    return dataclasses.replace(config, **shape, num_kv_heads=None, query_scalar=None)


def count_parameters(config: TransformerConfig) -> int:
    """Counts the parameters of a `LanguageModel`: embeddings, blocks, norms.

    A `ScalarModel` has d_model + 1 more, and no unembedding.
    """
    width, inner, shared = config.d_model, config.num_heads * config.d_head, config.kv_heads * config.d_head
    wide = config.d_ff * (2 if config.gated else 1)
    biases = {"none": 0, "query_key_value": inner + 2 * shared, "all": inner + 2 * shared + wide + 2 * width}
    normed = {"none": 0, "head": 2 * config.d_head, "width": inner + shared}[config.query_key_norm]
    norms = 4 if config.norm_placement == "both" else 2
    of_norm = 2 if config.norm == "layer" else 1
    block = matrix_parameters(config) + biases[config.biases] + of_norm * (norms * width + normed)
    embeddings = config.vocab_size * (1 if config.tied else 2)
    if config.positions == "learned":
        embeddings += config.max_length
    return embeddings * width + config.num_layers * block + of_norm * width


def matrix_parameters(config: TransformerConfig) -> int:
    """Counts the weights of the matrices of one block; each is one multiply-add per token."""
    heads = 2 * (config.num_heads + config.kv_heads)
    return config.d_model * (heads * config.d_head + (3 if config.gated else 2) * config.d_ff)
