"""The shape and the arithmetic of a model."""

from __future__ import annotations

import dataclasses

import jax

from instructjax.errors import ConfigError

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The shape and the arithmetic of a model.

    Attributes:
      vocab_size: V.
      num_layers: L.
      d_model: width of the residual stream.
      num_heads: H.
      d_head: D; H times D may differ from `d_model`.
      d_ff: width of the hidden layer of the feed-forward network, 4 d_model in GPT-3.
      max_length: number of learned positions; a position beyond it gives NaN.
      dropout: rate of residual dropout: on the embeddings and on the output of each sublayer
        (Vaswani et al. 2017, section 5.4).
      local_window: None, or the number of positions that odd layers see (counted from 0),
        while even layers see all: GPT-3's alternation of dense and locally banded attention.
      dtype: of activations and of the cache. Logits, scalars, softmax and the statistics of
        layer norms are always float32, or float64 if this is float64, which is meant for
        comparisons and needs JAX_ENABLE_X64=1.
      matmul_dtype: the dtype to which the factors of matrix products are rounded; their sums are
        at least float32. "" means `dtype`. "bfloat16" with float32 activations is how a TPU
        computes float32 products by default. It is also the fastest on a CPU with bfloat16
        matrix units, where all other operations are slow in bfloat16.
      param_dtype: of the parameters.
      tied: whether the token embedding is also the unembedding, as in GPT-2 and GPT-3. Some
        imported models have a separate matrix.
      remat: what is saved for the backward pass. False saves the output of each dense layer, and
        recomputes attention, norms and GELU. True saves the input of each block, and recomputes
        the whole block.
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
    """

    vocab_size: int
    num_layers: int
    d_model: int
    num_heads: int
    d_head: int
    d_ff: int
    max_length: int
    dropout: float = 0.0
    local_window: int | None = None
    dtype: str = "float32"
    matmul_dtype: str = ""
    param_dtype: str = "float32"
    tied: bool = True
    remat: bool = False
    unroll: int = 1
    cache_by_layer: bool = True
    shard_length: bool = True
    logits_chunk: int = 512
    init_std: float = 0.02

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "num_layers", "d_model", "num_heads", "d_head", "d_ff", "max_length")
        for name in (*sizes, "unroll", "logits_chunk"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}: expected at least 1, found {getattr(self, name)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"model.dropout: expected a rate from 0 to below 1, found {self.dropout}")
        if self.local_window is not None and self.local_window < 1:
            raise ConfigError(f"model.local_window: expected None or at least 1, found {self.local_window}")
        if self.matmul_dtype and self.matmul_dtype not in DTYPES:
            raise ConfigError(
                f"model.matmul_dtype: expected one of {', '.join(DTYPES)} or '', found {self.matmul_dtype!r}"
            )
        for name in ("dtype", "param_dtype"):
            if getattr(self, name) not in DTYPES:
                raise ConfigError(f"model.{name}: expected one of {', '.join(DTYPES)}, found {getattr(self, name)!r}")
            if getattr(self, name) == "float64" and not jax.config.read("jax_enable_x64"):
                raise ConfigError(f"model.{name}: expected JAX_ENABLE_X64=1 with float64, found it off")

    @property
    def resolved_matmul_dtype(self) -> str:
        """Returns `matmul_dtype`, or `dtype` if that is empty."""
        return self.matmul_dtype or self.dtype
