"""GPT-2 (Radford et al. 2019)."""

from __future__ import annotations

from typing import Any

from instructjax.models.config import TransformerConfig
from instructjax.models.families.family import SAME, SIDE_BY_SIDE, Described, Family, Table, head_width, norm, size

_ATTENTION, _FEED_FORWARD = "trunk/blocks/attention", "trunk/blocks/feed_forward"


def _convolution(theirs: str, ours: str) -> Table:
    """Returns the entries of a Conv1D, whose weight is [in, out]."""
    return {f"{theirs}.weight": (SAME, (f"{ours}/kernel",)), f"{theirs}.bias": (SAME, (f"{ours}/bias",))}


_TABLE: Table = {
    "wte.weight": (SAME, ("trunk/token_embedding",)),
    "wpe.weight": (SAME, ("trunk/position_embedding",)),
    **norm("h.{}.ln_1", "trunk/blocks/attention_norm"),
    "h.{}.attn.c_attn.weight": (
        SIDE_BY_SIDE,
        tuple(f"{_ATTENTION}/{name}/kernel" for name in ("query", "key", "value")),
    ),
    "h.{}.attn.c_attn.bias": (SIDE_BY_SIDE, tuple(f"{_ATTENTION}/{name}/bias" for name in ("query", "key", "value"))),
    **_convolution("h.{}.attn.c_proj", f"{_ATTENTION}/out"),
    **norm("h.{}.ln_2", "trunk/blocks/feed_forward_norm"),
    **_convolution("h.{}.mlp.c_fc", f"{_FEED_FORWARD}/in"),
    **_convolution("h.{}.mlp.c_proj", f"{_FEED_FORWARD}/out"),
    **norm("ln_f", "trunk/final_norm"),
}


def _fields(described: Described, where: str) -> dict[str, Any]:
    width = size(described, "n_embd", where)
    return {
        "vocab_size": size(described, "vocab_size", where),
        "num_layers": size(described, "n_layer", where),
        "d_model": width,
        "num_heads": size(described, "n_head", where),
        "d_head": head_width(described, "n_embd", "n_head", where),
        "d_ff": size(described, "n_inner", where, 4 * width),
        "max_length": size(described, "n_positions", where),
        "tied": described.get("tie_word_embeddings", True),
    }


def _described(config: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_layer": config.num_layers,
        "n_embd": config.d_model,
        "n_head": config.num_heads,
        "n_inner": config.d_ff,
        "n_positions": config.max_length,
        "n_ctx": config.max_length,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": config.tied,
    }


FAMILY = Family(
    model_type="gpt2",
    language_model="GPT2LMHeadModel",
    classifier="GPT2ForSequenceClassification",
    prefix="transformer.",
    table=_TABLE,
    supported={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (1e-5,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True, False),
    },
    fields=_fields,
    described=_described,
)
