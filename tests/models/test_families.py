"""Families of models: configs and weights in and out, what is refused, and the same logits in transformers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.errors import CheckpointError
from instructjax.models import huggingface, pretrained
from instructjax.models.transformer import LanguageModel, ScalarModel
from tests import decoders, fakes

pytest.importorskip("safetensors", reason="needs the extra huggingface")

IDS = {"eos_id": 1, "pad_id": 0}
LLAMA = dataclasses.replace(decoders.LLAMA, num_layers=2, cache_by_layer=True, d_model=16, d_head=8)
QWEN = dataclasses.replace(LLAMA, biases="query_key_value", tied=True)
GEMMA = dataclasses.replace(
    decoders.GEMMA, d_model=16, cache_by_layer=True, query_key_norm="none", window_pattern="LD", num_layers=2,
    rotary_base=1e4, rotary_local_base=None,
)  # fmt: skip
NEOX = dataclasses.replace(
    decoders.CHOICES["neox"], d_model=32, d_head=8, num_layers=2, rotary_scaling="", rotary_factor=1.0,
    cache_by_layer=True,
)  # fmt: skip
LLAMA3 = dict(rotary_scaling="llama3", rotary_factor=8.0, rotary_original_length=16, rotary_base=5e5)
YARN = dict(rotary_scaling="yarn", rotary_factor=4.0, rotary_original_length=16, rotary_fast=32.0)
MODELS = {
    "gpt2": ("gpt2", dataclasses.replace(fakes.CONFIG, vocab_size=19)),
    "pythia": ("gpt_neox", NEOX),
    "neox in sequence": ("gpt_neox", dataclasses.replace(NEOX, parallel_residual=False, activation="gelu_tanh")),
    "llama 2": ("llama", dataclasses.replace(LLAMA, num_kv_heads=None)),
    "llama 3": ("llama", dataclasses.replace(LLAMA, **LLAMA3)),
    "smollm2": ("llama", dataclasses.replace(LLAMA, tied=True, rotary_base=1e5, norm_epsilon=1e-5)),
    "llama with biases": ("llama", dataclasses.replace(LLAMA, biases="all", num_kv_heads=1)),
    "mistral": ("mistral", dataclasses.replace(LLAMA, local_window=4, window_pattern="L")),
    "qwen2": ("qwen2", QWEN),
    "qwen2 with yarn": (
        "qwen2",
        dataclasses.replace(QWEN, **YARN, rotary_amplitude=0.1 * float(np.log(4.0)) + 1, d_head=16),
    ),
    "qwen3": ("qwen3", dataclasses.replace(LLAMA, query_key_norm="head", rotary_base=1e6)),
    "gemma 2": ("gemma2", GEMMA),
    "gemma 3": (
        "gemma3_text",
        dataclasses.replace(
            GEMMA,
            query_key_norm="head",
            rotary_base=1e6,
            rotary_local_base=1e4,
            score_cap=0.0,
            logits_cap=0.0,
            num_layers=3,
            window_pattern="LLD",
            rotary_scaling="linear",
            rotary_factor=8.0,
        ),  # fmt: skip
    ),
    "olmo 2": ("olmo2", dataclasses.replace(LLAMA, norm_placement="post", query_key_norm="width")),
}


def described_of(config, **changes):
    return huggingface.describe(config, **IDS) | changes


def message(function, *arguments, **named):
    with pytest.raises(CheckpointError) as error:
        function(*arguments, **named)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", MODELS)
def test_weights_and_configs_come_back_bit_for_bit(name):
    kind, config = MODELS[name]
    described = json.loads(json.dumps(described_of(config)))
    assert described["model_type"] == kind
    assert huggingface.config_of(described) == dataclasses.replace(config, init_std=0.02)
    params = fakes.params(LanguageModel(config))
    tensors = huggingface.tensors_of(params, config)
    prefix = huggingface.FAMILIES[kind].prefix
    back = huggingface.params_of({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, config)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_the_keys_of_transformers_5_are_read():
    old = described_of(MODELS["llama 3"][1])
    new = {key: value for key, value in old.items() if key not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {"rope_theta": old["rope_theta"], **old["rope_scaling"]}
    assert huggingface.config_of(new) == huggingface.config_of(old)
    old = described_of(MODELS["gemma 3"][1])
    new = {key: value for key, value in old.items() if not key.startswith("rope_")}
    local = {"rope_type": "default", "rope_theta": 1e4}
    new["rope_parameters"] = {
        "full_attention": {"rope_theta": 1e6, **old["rope_scaling"]},
        "sliding_attention": local,
    }
    assert huggingface.config_of(new) == huggingface.config_of(old)


def test_a_released_config_is_read():
    """SmolLM2-135M's, without what tells transformers how to generate."""
    described = {
        **{"model_type": "llama", "hidden_act": "silu", "hidden_size": 576, "intermediate_size": 1536},
        **{"max_position_embeddings": 8192, "num_attention_heads": 9, "num_hidden_layers": 30},
        **{"num_key_value_heads": 3, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 100000},
        **{"tie_word_embeddings": True, "vocab_size": 49152, "attention_bias": False},
    }
    config = huggingface.config_of(described)
    assert (config.d_head, config.num_kv_heads, config.rotary_base, config.norm) == (64, 3, 1e5, "rms")
    huggingface.check_fit(config, dataclasses.replace(config, max_length=512), "FOLDER")
    longer = dataclasses.replace(config, max_length=16_384)
    assert message(huggingface.check_fit, config, longer, "FOLDER").endswith("max_length 16384, found max_length 8192")


def test_an_unembedding_that_differs_is_refused_or_untied():
    config = MODELS["smollm2"][1]
    tensors = huggingface.tensors_of(fakes.params(LanguageModel(config)), config)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    assert set(huggingface.params_of(tensors, config)) == {"trunk"}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    assert message(huggingface.params_of, tensors, config) == (
        "model.safetensors: lm_head.weight: expected model.embed_tokens.weight, as tie_word_embeddings is true, found "
        "other values; set it to false to import both"
    )
    untied = huggingface.params_of(tensors, dataclasses.replace(config, tied=False))
    np.testing.assert_array_equal(untied["unembedding"], tensors["lm_head.weight"])


def test_the_offset_of_a_reward_model_without_biases_is_in_its_config():
    config = MODELS["smollm2"][1]
    params = fakes.params(ScalarModel(config))
    params["head"]["bias"] = jnp.float32(-3.25)
    described = huggingface.describe(config, **IDS, is_reward_model=True) | huggingface.score_offset(params, config)
    assert described["architectures"] == ["LlamaForSequenceClassification"] and described["score_offset"] == -3.25
    back = huggingface.params_of(huggingface.tensors_of(params, config), config)
    assert back["head"]["bias"] == 0
    back = huggingface.with_score_offset(back, described)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert message(huggingface.with_score_offset, back, {"score_offset": "high"}) == (
        "config.json: score_offset: expected a finite number, found 'high'"
    )


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("llama 2", {"model_type": "mamba"}, "config.json: model_type: expected one of gpt2, gpt_neox, llama, "),
        ("llama 2", {"hidden_act": "relu"}, "config.json: hidden_act: expected silu, found 'relu'"),
        (
            "llama 2",
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "config.json: rope_scaling: rope_type: expected one of default, linear, llama3, yarn, found 'dynamic'",
        ),
        ("llama 2", {"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 1.0}}, "config.json: rope_scaling: "),
        ("llama 2", {"rope_scaling": [1]}, "config.json: rope_scaling: expected an object, found [1]"),
        ("llama 2", {"num_key_value_heads": 3}, "config.json: num_key_value_heads: expected a divisor of "),
        ("llama 2", {"mlp_bias": True}, "config.json: attention_bias, mlp_bias: expected the same, found False and "),
        ("llama 2", {"head_dim": 7}, "config.json: model.rotary_fraction: expected an even width x d_head, found 1.0"),
        ("gemma 2", {"layer_types": ["chunked"] * 2}, "config.json: layer_types: expected full_attention or "),
        ("gemma 2", {"use_bidirectional_attention": True}, "config.json: use_bidirectional_attention: expected False"),
        ("pythia", {"attention_bias": False}, "config.json: attention_bias: expected True, found False"),
        ("qwen3", {"attention_bias": True}, "config.json: attention_bias: expected False, found True"),
        ("llama 2", {"rms_norm_eps": "small"}, "config.json: rms_norm_eps: expected a positive number, found 'small'"),
    ],
)
def test_unsupported_configs_are_refused(name, change, expected):
    assert message(huggingface.config_of, described_of(MODELS[name][1], **change)).startswith(expected)


def test_a_model_of_no_family_is_refused_with_the_nearest_family():
    strange = dataclasses.replace(LLAMA, gated=False)
    assert message(huggingface.describe, strange, **IDS) == "model.gated: expected True for llama, found False"
    capped = dataclasses.replace(LLAMA, score_cap=4.0)
    assert message(huggingface.describe, capped, **IDS) == "model.score_cap: expected 0.0 for llama, found 4.0"
    louder = dataclasses.replace(LLAMA, rotary_amplitude=1.5)  # has an effect without yarn, too
    assert message(huggingface.describe, louder, **IDS) == "model.rotary_amplitude: expected 1.0 for llama, found 1.5"


@pytest.mark.parity
class TestAgainstTransformers:
    """Needs torch and transformers. Weights are random.

    transformers computes norms, angles and softmax in float32 whatever the dtype, so its logits are compared to 1e-4
    of float32. `test_choices.py` has the forward pass in float64.
    """

    @pytest.fixture(autouse=True)
    def packages(self):
        self.torch = pytest.importorskip("torch", reason="needs the extra parity")
        self.transformers = pytest.importorskip("transformers", reason="needs the extra parity")

    @pytest.mark.parametrize("name", MODELS)
    def test_a_model_goes_out_and_back_with_the_same_logits_and_bits(self, tmp_path, name, capsys):
        """Exported, loaded and saved by transformers, and imported again."""
        _, config = MODELS[name]
        params = fakes.params(LanguageModel(config))
        tensors = huggingface.tensors_of(params, config)
        pretrained.write(tmp_path / "ours", described_of(config), tensors, {})
        theirs, loading = self.transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "ours", attn_implementation="eager", output_loading_info=True
        )
        assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
        tokens = np.random.default_rng(0).integers(2, config.vocab_size, size=(3, 14))
        with self.torch.no_grad():
            expected = theirs.eval()(self.torch.tensor(tokens)).logits.numpy()
        rows = tokens, np.ones_like(tokens), np.arange(14)[None].repeat(3, 0)
        found = fakes.logits_of(config, params, *rows)
        error = np.abs(found - expected).max()
        with capsys.disabled():
            print(f"\n  {name}: largest difference {error:.1e}, largest value {np.abs(expected).max():.1f}", end="")
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        theirs.save_pretrained(tmp_path / "theirs")
        described = pretrained.read_config(tmp_path / "theirs")
        assert huggingface.config_of(described) == huggingface.config_of(described_of(config))
        back = huggingface.params_of(pretrained.read_tensors(tmp_path / "theirs"), config)
        jax.tree.map(np.testing.assert_array_equal, back, params)

    @pytest.mark.parametrize("name", ["pythia", "llama 3", "mistral", "qwen2", "qwen3", "gemma 2", "gemma 3", "olmo 2"])
    def test_a_reward_model_has_the_same_scores_there(self, tmp_path, name, capsys):
        _, config = MODELS[name]
        params = fakes.params(ScalarModel(config))
        described = huggingface.describe(config, **IDS, is_reward_model=True)
        described |= huggingface.score_offset(params, config)
        pretrained.write(tmp_path / "ours", described, huggingface.tensors_of(params, config), {})
        load = self.transformers.AutoModelForSequenceClassification.from_pretrained
        theirs = load(tmp_path / "ours", attn_implementation="eager").eval()
        tokens = np.random.default_rng(0).integers(2, config.vocab_size, size=(3, 14))
        with self.torch.no_grad():
            expected = theirs(self.torch.tensor(tokens)).logits[:, 0].numpy() + described.get("score_offset", 0.0)
        rows = tokens, np.ones_like(tokens), np.arange(14)[None].repeat(3, 0)
        found = np.asarray(fakes.compiled(ScalarModel(config))(params, *rows)[:, -1])
        with capsys.disabled():
            error = np.abs(found - expected).max()
            print(f"\n  {name}: largest difference {error:.1e}, largest value {np.abs(expected).max():.1f}", end="")
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
