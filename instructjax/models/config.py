"""The shape of a model, and the arithmetic it computes in."""

from __future__ import annotations

import dataclasses

import jax

from instructjax.errors import ConfigError

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The shape of a model and the arithmetic it computes in.

    Attributes:
      vocab_size: V.
      num_layers: L.
      d_model: width of the residual stream.
      num_heads: H.
      d_head: D; H times D may differ from `d_model`.
      d_ff: width of the hidden layer of the feed-forward network, 4 d_model in GPT-3.
      max_length: number of learned positions; a position beyond it gives NaN.
      dropout: rate of residual dropout: on the embeddings and on what each sublayer
        adds to the residual stream (Vaswani et al. 2017, section 5.4).
      local_window: None, or the number of positions that the odd layers see (layers
        count from 0), the even ones seeing all: GPT-3's alternation of dense and
        locally banded attention.
      dtype: of activations and of the cache. Logits, scalars, softmax and the
        statistics of layer norms are float32 always, or float64 where this is; that is
        for comparisons and needs JAX_ENABLE_X64=1.
      matmul_dtype: the dtype that the factors of matrix products are rounded to; their sums are float32
        at least. "" is `dtype`. "bfloat16" below activations of float32 is what a TPU makes of
        float32 products by itself; on a CPU with matrix units for bfloat16 it is the fastest, as
        everything that is no product is slow in bfloat16 there.
      param_dtype: of the parameters.
      tied: whether logits are products with the token embedding, as in GPT-2 and GPT-3, or with a
        matrix of their own, as some imported models have.
      remat: what the backward pass finds in memory. False: the result of each dense
        layer, so that attention, norms and GELU are computed again. True: the input of
        each block, so that all of it is.
      unroll: how many layers one turn of the scan computes; changes no result.
      cache_by_layer: whether decoding is a program of L blocks with a cache each, and not a scan
        over one cache of all layers; changes no result. It takes longer to compile, and nothing
        copies the keys and values of a layer, as XLA does on a CPU to read them.
      shard_length: whether the residual stream between blocks is cut by position over the mesh
        axis "tensor"; changes no result.
      logits_chunk: of how many tokens a device holds the logits at a time in a loss; changes no
        result. The fewer, the less memory, but the unembedding is read anew for each chunk: some
        hundreds on a CPU and some thousands on an accelerator are enough.
      init_std: standard deviation of every kernel and embedding at the start (Radford et al.
        2018, section 4.1, have 0.02). Narrow models want more: 0.02 is 1 / sqrt(2500).
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
        """Returns `matmul_dtype`, or `dtype` if that is not given."""
        return self.matmul_dtype or self.dtype
