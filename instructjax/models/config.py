"""The shape and the arithmetic of a model."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from instructjax.errors import ConfigError

DTYPES = ("float32", "bfloat16", "float16", "float64")
NORMS = ("layer", "rms", "rms_unit_offset")
NORM_PLACEMENTS = ("pre", "post", "both")
POSITIONS = ("learned", "rotary")
ROTARY_SCALINGS = ("linear", "llama3", "yarn")
ACTIVATIONS = ("gelu_tanh", "gelu", "silu")
DECODING_DTYPES = ("int8", "int8xint8")
REMATS = ("none", "dense", "offload", "attention", "all")
BIASES = ("all", "query_key_value", "none")
QUERY_KEY_NORMS = ("none", "head", "width")

# Fields that have no part in the function that a model computes: its arithmetic, and how it is run and started.
_EXECUTION = frozenset(
    "dropout dtype matmul_dtype param_dtype decoding_dtype remat unroll cache_by_layer shard_length logits_chunk "
    "init_std lora_alpha lora_dropout".split()
)
_ROTARY = ("rotary_base", "rotary_fraction", "rotary_scaling", "rotary_local_base", "rotary_amplitude")
_SCALING = ("rotary_factor", "rotary_original_length", "rotary_slow", "rotary_fast")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The shape and the arithmetic of a model. The defaults are the choices of GPT-3.

    Attributes:
      vocab_size: V.
      num_layers: L.
      d_model: width of the residual stream.
      num_heads: H.
      d_head: D; H times D may differ from `d_model`.
      d_ff: width of the hidden layer of the feed-forward network, 4 d_model in GPT-3.
      max_length: the context, in tokens. If positions are learned, it is their number, and a position beyond it gives
        NaN.
      num_kv_heads: None, or the number of key and value heads, G, each of which H / G query heads share: grouped
        attention (Ainslie et al. 2023), or multi-query attention if it is 1. None: H.
      dropout: rate of residual dropout: on the embeddings and on the output of each sublayer
        (Vaswani et al. 2017, section 5.4).
      local_window: None, or the number of positions that local layers see, while dense layers see all: GPT-3's
        alternation of dense and locally banded attention.
      window_pattern: which layers are dense (D) and local (L), repeated over the layers, if there is a window.
      norm: "layer"; "rms" (Zhang & Sennrich 2019); "rms_unit_offset": rms with a scale of 1 + w.
      norm_epsilon: added to the variance, or to the mean square.
      norm_placement: "pre": x + f(norm(x)); "post": x + norm(f(x)); "both": x + norm(f(norm(x))).
      parallel_residual: whether both sublayers read the same x: x + attention(norm(x)) + feed_forward(norm(x)).
      positions: "learned" embeddings, or "rotary": queries and keys are rotated by their positions (Su et al. 2021).
      rotary_base: the base of the angles' frequencies.
      rotary_local_base: None, or the base in local layers, whose frequencies are not scaled.
      rotary_fraction: the share of each head's width that is rotated.
      rotary_scaling: "" or how frequencies are lowered for contexts longer than in training: "linear", all of them
        (Chen et al. 2023); "llama3" or "yarn" (Peng et al. 2023), only those with few rotations.
      rotary_factor: by how much low frequencies are lowered.
      rotary_original_length: the context in training, in tokens, for "llama3" and "yarn".
      rotary_slow: frequencies with fewer rotations in that context are lowered by the whole factor.
      rotary_fast: frequencies with more rotations in that context are kept.
      rotary_amplitude: a factor on the rotated queries and keys, for "yarn".
      activation: of the feed-forward network: "gelu_tanh" (GELU in GPT-2's tanh form), "gelu", "silu".
      gated: whether the activation of one dense layer multiplies another (Shazeer 2020): SwiGLU or GeGLU.
      biases: which dense layers have a bias: "all", "query_key_value" or "none".
      query_key_norm: whether queries and keys are normalized, each "head" on its own or over the "width" of all heads.
      query_scalar: None, or the number by whose square root scores are divided. None: D.
      score_cap: if not 0, scores s become score_cap * tanh(s / score_cap).
      logits_cap: the same for logits.
      scaled_embedding: whether token embeddings are multiplied by sqrt(d_model).
      dtype: of activations and of the cache. Logits, scalars, softmax and the statistics of
        norms are always float32, or float64 if this is float64, which is meant for
        comparisons and needs JAX_ENABLE_X64=1.
      matmul_dtype: the dtype to which the operands of matmuls are rounded; their sums are
        at least float32. "" means `dtype`. "bfloat16" with float32 activations is how a TPU
        computes float32 products by default. It is also the fastest on a CPU with bfloat16
        matrix units, where all other operations are slow in bfloat16.
      param_dtype: of the parameters.
      decoding_dtype: the dtype to which kernels and unembedding are rounded in decoding. "" means `matmul_dtype`;
        "int8" reads fewer bytes per token, and changes results: see quantization.py. "int8xint8" also rounds
        activations to int8, so that integers are multiplied.
      tied: whether the token embedding is also the unembedding, as in GPT-2 and GPT-3. Some
        imported models have a separate matrix.
      remat: what the backward pass computes again, to save memory; changes no result. "none": nothing. "dense":
        everything but the outputs of dense layers, which are saved: attention, norms and activations. "offload": the
        same, but the saved outputs wait in the memory of the host. "attention": everything but the outputs of
        attention. "all": each block, of which only the input is saved.
      unroll: number of layers per iteration of the scan; changes no result.
      cache_by_layer: whether decoding runs L blocks with a cache each instead of a scan over one
        cache of all layers; changes no result. It takes longer to compile, but avoids the copies
        of a layer's keys and values that XLA makes on a CPU.
      shard_length: whether the residual stream between blocks is sharded by position over the
        mesh axis "tensor"; changes no result.
      logits_chunk: number of tokens whose logits a device holds at a time in a loss; changes no
        result. A smaller number needs less memory, but the unembedding is read once per chunk. A
        few hundred on a CPU and a few thousand on an accelerator are enough.
      init_std: standard deviation of the initial kernels and embeddings (0.02 in Radford et al.
        2018, section 4.1). Narrow models need more: 0.02 is 1 / sqrt(2500).
      lora_alpha: adapters of rank r are multiplied by lora_alpha / r, if the weights have adapters; see lora.py.
      lora_dropout: rate of dropout on the input of adapters.
    """

    vocab_size: int
    num_layers: int
    d_model: int
    num_heads: int
    d_head: int
    d_ff: int
    max_length: int
    num_kv_heads: int | None = None
    dropout: float = 0.0
    local_window: int | None = None
    window_pattern: str = "DL"
    norm: str = "layer"
    norm_epsilon: float = 1e-5
    norm_placement: str = "pre"
    parallel_residual: bool = False
    positions: str = "learned"
    rotary_base: float = 10_000.0
    rotary_local_base: float | None = None
    rotary_fraction: float = 1.0
    rotary_scaling: str = ""
    rotary_factor: float = 1.0
    rotary_original_length: int | None = None
    rotary_slow: float = 1.0
    rotary_fast: float = 4.0
    rotary_amplitude: float = 1.0
    activation: str = "gelu_tanh"
    gated: bool = False
    biases: str = "all"
    query_key_norm: str = "none"
    query_scalar: float | None = None
    score_cap: float = 0.0
    logits_cap: float = 0.0
    scaled_embedding: bool = False
    dtype: str = "float32"
    matmul_dtype: str = ""
    param_dtype: str = "float32"
    decoding_dtype: str = ""
    tied: bool = True
    remat: str = "dense"
    unroll: int = 1
    cache_by_layer: bool = True
    shard_length: bool = True
    logits_chunk: int = 512
    init_std: float = 0.02
    lora_alpha: float = 1.0
    lora_dropout: float = 0.0

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "num_layers", "d_model", "num_heads", "d_head", "d_ff", "max_length")
        for name in (*sizes, "unroll", "logits_chunk"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("dropout", "lora_dropout"):
            _require(self, name, 0.0 <= getattr(self, name) < 1.0, "a rate from 0 to below 1")
        for name in ("local_window", "num_kv_heads", "rotary_original_length"):
            _require(self, name, getattr(self, name) is None or getattr(self, name) >= 1, "None or at least 1")
        for name in ("rotary_local_base", "query_scalar"):
            _require(self, name, getattr(self, name) is None or getattr(self, name) > 0, "None or more than 0")
        for name in ("norm_epsilon", "rotary_base", "rotary_amplitude", "lora_alpha"):
            _require(self, name, getattr(self, name) > 0, "more than 0")
        for name in ("score_cap", "logits_cap"):
            _require(self, name, getattr(self, name) >= 0, "at least 0")
        for name, choices in CHOICES.items():
            expected = " or ".join((", ".join(choices), *[f"'{choice}'" for choice in choices if not choice]))
            _require(self, name, getattr(self, name) in choices, f"one of {expected.removeprefix(', ')}")
        for name in ("dtype", "param_dtype"):
            if getattr(self, name) == "float64" and not jax.config.read("jax_enable_x64"):
                raise ConfigError(f"model.{name}: expected JAX_ENABLE_X64=1 with float64, found it off")
        _check_attention(self)
        _check_rotary(self)

    @property
    def resolved_matmul_dtype(self) -> str:
        """Returns `matmul_dtype`, or `dtype` if that is empty."""
        return self.matmul_dtype or self.dtype

    @property
    def quantized_matmul_dtype(self) -> str:
        """Returns the dtype to which activations are rounded before a product with int8 weights."""
        return "int8" if self.decoding_dtype == "int8xint8" else self.resolved_matmul_dtype

    @property
    def has_dropout(self) -> bool:
        """Returns whether training draws random numbers."""
        return self.dropout > 0 or self.lora_dropout > 0

    @property
    def kv_heads(self) -> int:
        """Returns G, the number of key and value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def rotary_width(self) -> int:
        """Returns how many units of each head are rotated."""
        return int(self.d_head * self.rotary_fraction)

    def function(self) -> dict[str, Any]:
        """Returns the fields that determine what the weights compute, without those that have no effect."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name not in _EXECUTION}
        fields["num_kv_heads"] = None if self.kv_heads == self.num_heads else self.kv_heads
        fields["query_scalar"] = None if self.query_scalar == self.d_head else self.query_scalar
        fields["window_pattern"] = shortest_pattern(self.window_pattern, self.num_layers)
        unused: tuple[str, ...] = ("window_pattern",) if self.local_window is None else ()
        if self.positions != "rotary":
            unused += _ROTARY
        if not self.rotary_scaling:
            unused += _SCALING
        if self.rotary_scaling == "linear":
            unused += _SCALING[1:]
        return {name: value for name, value in fields.items() if name not in unused}


def shortest_pattern(pattern: str, num_layers: int) -> str:
    """Returns the shortest pattern of D and L whose repetition over the layers is that of this one."""
    seen = (2 * pattern)[:num_layers]
    return next(seen[:n] for n in range(1, len(seen) + 1) if all(a == b for a, b in zip(seen[n:], seen, strict=False)))


# The values of fields that are one of several words.
CHOICES = {
    "norm": NORMS,
    "norm_placement": NORM_PLACEMENTS,
    "positions": POSITIONS,
    "rotary_scaling": ("", *ROTARY_SCALINGS),
    "activation": ACTIVATIONS,
    "biases": BIASES,
    "remat": REMATS,
    "query_key_norm": QUERY_KEY_NORMS,
    "matmul_dtype": (*DTYPES, ""),
    "dtype": DTYPES,
    "param_dtype": DTYPES,
    "decoding_dtype": ("", *DECODING_DTYPES),
}


def _check_attention(config: TransformerConfig) -> None:
    _require(
        config, "num_kv_heads", config.num_heads % config.kv_heads == 0, f"a divisor of num_heads ({config.num_heads})"
    )
    pattern = config.window_pattern
    _require(config, "window_pattern", set(pattern) in ({"L"}, {"D", "L"}), "a text of D and L, at least one L")


def _check_rotary(config: TransformerConfig) -> None:
    rotary, width = config.positions == "rotary", config.d_head * config.rotary_fraction
    _require(config, "rotary_fraction", 0 < config.rotary_fraction <= 1, "a share above 0, up to 1")
    if rotary:
        _require(config, "rotary_fraction", int(width) >= 2 and int(width) % 2 == 0, "an even width x d_head")
    for name in ("rotary_scaling", "rotary_local_base"):
        _require(config, name, rotary or not getattr(config, name), "positions 'rotary' with it")
    _require(
        config,
        "rotary_local_base",
        config.rotary_local_base is None or config.local_window is not None,
        "local_window with it",
    )
    _require(config, "rotary_factor", config.rotary_factor >= 1, "at least 1")
    _require(config, "rotary_slow", 0 < config.rotary_slow < config.rotary_fast, "more than 0, below rotary_fast")
    if config.rotary_scaling in ("llama3", "yarn"):
        given = config.rotary_original_length is not None
        _require(config, "rotary_original_length", given, f"tokens, for {config.rotary_scaling}")


def _require(config: TransformerConfig, name: str, good: bool, expected: str) -> None:
    if not good:
        raise ConfigError(f"model.{name}: expected {expected}, found {getattr(config, name)!r}")
