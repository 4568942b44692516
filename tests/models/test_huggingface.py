"""Import and export of weights: names and shapes here, and the same logits and scores in transformers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.batch import PromptBatch
from instructjax.errors import CheckpointError
from instructjax.models import huggingface, pretrained
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.rollout import sampling
from tests import fakes

pytest.importorskip("safetensors", reason="needs the extra huggingface")

CONFIG = dataclasses.replace(fakes.CONFIG, vocab_size=19)
UNTIED = dataclasses.replace(CONFIG, tied=False)
IDS = {"eos_id": 1, "pad_id": 0}


def assert_identical(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def written(folder, config=CONFIG, model=LanguageModel, **changes):
    """Writes a model, with changes to config.json. Returns (parameters, folder)."""
    params = fakes.params(model(config))
    described = huggingface.describe(config, **IDS, is_reward_model=model is ScalarModel) | changes
    pretrained.write(folder, described, huggingface.tensors_of(params, config), {"tokenizer.json": b"{}"})
    return params


def read(folder, config=None):
    config = config or huggingface.config_of(pretrained.read_config(folder))
    return huggingface.params_of(pretrained.read_tensors(folder), config, str(folder))


def message(function, *arguments):
    with pytest.raises(CheckpointError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
def test_exported_weights_are_the_same_after_import(tmp_path, config):
    params = written(tmp_path / "model", config)
    assert huggingface.config_of(pretrained.read_config(tmp_path / "model")) == config
    assert_identical(read(tmp_path / "model"), params)
    assert not list(tmp_path.glob(".*"))


def test_a_reward_model_keeps_its_scores(tmp_path):
    """The offset is in the bias of the last norm."""
    params = written(tmp_path / "model", model=ScalarModel)
    params["head"]["bias"] = jnp.float32(-3.25)
    tensors = huggingface.tensors_of(params, CONFIG)
    back = huggingface.params_of(tensors, CONFIG)
    assert back["head"]["bias"] == 0.0
    tokens = jnp.arange(14).reshape(2, 7)
    row = tokens, jnp.ones_like(tokens), jnp.arange(7)[None].repeat(2, 0)
    scores = [ScalarModel(CONFIG).apply({"params": p}, *row) for p in (params, back)]
    np.testing.assert_allclose(*scores, atol=1e-5)


def test_shards_are_one_model(tmp_path):
    params = written(tmp_path / "model")
    tensors = pretrained.read_tensors(tmp_path / "model")
    names = sorted(tensors)
    (tmp_path / "model" / pretrained.WEIGHTS).unlink()
    flax = pytest.importorskip("safetensors.flax")
    files = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, part in files.items():
        flax.save_file({name: tensors[name] for name in part}, str(tmp_path / "model" / file))
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (tmp_path / "model" / pretrained.INDEX).write_text(json.dumps(index))
    assert_identical(read(tmp_path / "model"), params)
    (tmp_path / "model" / "b.safetensors").unlink()
    assert "expected b.safetensors, which model.safetensors.index.json names" in message(read, tmp_path / "model")
    (tmp_path / "model" / pretrained.INDEX).write_text(json.dumps({"weight_map": {"x": "../a.safetensors"}}))
    assert "expected names of safetensors files, found '../a.safetensors'" in message(read, tmp_path / "model")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_becomes_float32(tmp_path, dtype):
    params = fakes.params(LanguageModel(CONFIG))
    halves = {name: jnp.asarray(t, dtype) for name, t in huggingface.tensors_of(params, CONFIG).items()}
    pretrained.write(tmp_path / "model", huggingface.describe(CONFIG, **IDS), halves, {})
    found = read(tmp_path / "model")
    assert_identical(found, jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), params))


def test_old_names_masks_and_a_copy_of_the_embedding_are_understood():
    params = fakes.params(LanguageModel(CONFIG))
    tensors = huggingface.tensors_of(params, CONFIG)
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old |= {"h.0.attn.bias": np.ones((1, 1, 24, 24)), "h.1.attn.masked_bias": np.zeros(())}
    old["lm_head.weight"] = tensors["transformer.wte.weight"]
    assert_identical(huggingface.params_of(old, CONFIG), params)


@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
def test_the_extra_rows_of_a_padded_vocabulary_are_left_out(config):
    params = fakes.params(LanguageModel(config))
    tensors = huggingface.tensors_of(params, config)
    for name in ("transformer.wte.weight", "lm_head.weight"):
        if name in tensors:
            tensors[name] = np.concatenate([tensors[name], np.full((45, config.d_model), 7, np.float32)])
    assert_identical(huggingface.params_of(tensors, config), params)
    huggingface.check_fit(dataclasses.replace(config, vocab_size=64), config, "folder")
    found = message(huggingface.check_fit, config, dataclasses.replace(config, vocab_size=64, num_layers=3), "folder")
    assert found == "folder: model: expected num_layers 3, vocab_size 64, found num_layers 2, vocab_size 19"


def test_errors_show_mismatches_of_both_sides():
    tensors = huggingface.tensors_of(fakes.params(LanguageModel(CONFIG)), CONFIG)
    tensors["transformer.h.0.mlp.c_fc.weight"] = tensors["transformer.h.0.mlp.c_fc.weight"].T
    del tensors["transformer.ln_f.bias"]
    tensors["transformer.h.0.attn.rotary.weight"] = np.zeros(3)
    found = message(huggingface.params_of, tensors, CONFIG, "FILE")
    assert found == (
        "FILE: expected transformer.h.0.attn.rotary.weight absent, transformer.h.0.mlp.c_fc.weight [32, 64], "
        "transformer.ln_f.bias [32]; found transformer.h.0.attn.rotary.weight [3], "
        "transformer.h.0.mlp.c_fc.weight [64, 32], transformer.ln_f.bias absent; 3 tensors do not fit"
    )


def test_integer_weights_are_rejected():
    tensors = huggingface.tensors_of(fakes.params(LanguageModel(CONFIG)), CONFIG)
    tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"].astype(np.int8)
    found = message(huggingface.params_of, tensors, CONFIG, "FILE")
    assert found == "FILE: expected floating-point numbers, found transformer.wpe.weight int8"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "falcon"),
        ("activation_function", "relu"),
        ("layer_norm_epsilon", 1e-6),
        ("scale_attn_by_inverse_layer_idx", True),
        ("scale_attn_weights", False),
        ("reorder_and_upcast_attn", True),
        ("add_cross_attention", True),
        ("n_layer", 0),
        ("n_head", "two"),
        ("n_head", 5),
    ],
)
def test_unsupported_arithmetic_is_rejected(tmp_path, key, value):
    written(tmp_path / "model", **{key: value})
    found = message(read, tmp_path / "model")
    assert found.startswith("config.json: ") and str(value) in found


def test_models_that_gpt2_cannot_express_are_rejected(tmp_path):
    banded = dataclasses.replace(CONFIG, local_window=3)
    assert message(lambda: huggingface.describe(banded, **IDS)).startswith("model.local_window: expected None")
    narrow = dataclasses.replace(CONFIG, d_head=8)
    assert message(lambda: huggingface.describe(narrow, **IDS)) == "model.d_head: expected 16 for gpt2, found 8"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickle_files_are_rejected(tmp_path, name):
    written(tmp_path / "model")
    (tmp_path / "model" / pretrained.WEIGHTS).rename(tmp_path / "model" / name)
    assert f"found {name}, which is a pickle and can run code" in message(read, tmp_path / "model")


def test_missing_or_damaged_files_are_rejected(tmp_path):
    assert message(read, tmp_path / "nowhere") == f"{tmp_path}/nowhere: expected the folder of a model, found none"
    (tmp_path / "file").write_bytes(b"")
    assert message(read, tmp_path / "file") == f"{tmp_path}/file: expected the folder of a model, found a file"
    written(tmp_path / "model")
    weights = tmp_path / "model" / pretrained.WEIGHTS
    content = weights.read_bytes()
    weights.write_bytes(content[:100])
    assert message(read, tmp_path / "model").startswith(f"{weights}: expected a safetensors file, found ")
    weights.unlink()
    assert message(read, tmp_path / "model").endswith("model.safetensors.index.json, found none")
    (tmp_path / "model" / "config.json").write_text("[]")
    assert message(read, tmp_path / "model").endswith("config.json: expected a JSON object, found list")


def test_nothing_is_overwritten(tmp_path):
    written(tmp_path / "model")
    assert "expected no folder, or an empty one" in message(written, tmp_path / "model")


@pytest.mark.parity
class TestAgainstTransformers:
    """Needs torch and transformers. Weights are random.

    Both sides compute in float64, where a difference above 1e-11 is not rounding. In float32, the first call of torch
    in a process was seen to differ by 1e-4 from its own float64, and the next call did not.
    """

    SHAPES = [
        CONFIG,
        UNTIED,
        dataclasses.replace(CONFIG, num_layers=5, d_model=48, num_heads=3, d_ff=80, max_length=40),
        dataclasses.replace(CONFIG, num_layers=1, d_model=64, num_heads=8, d_head=8, vocab_size=300),
    ]

    @pytest.fixture(autouse=True)
    def packages(self):
        self.torch = pytest.importorskip("torch", reason="needs the extra parity")
        self.transformers = pytest.importorskip("transformers", reason="needs the extra parity")

    def ours(self, model, params, *row):
        """Computes our model's logits or scores in float64."""
        with jax.enable_x64(True):
            exact = type(model)(dataclasses.replace(model.config, dtype="float64", param_dtype="float64"))
            found = exact.apply({"params": jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)}, *row)
            return np.asarray(found[0] if isinstance(model, LanguageModel) else found)

    def row(self, config, rows=3, length=17):
        tokens = np.random.default_rng(0).integers(2, config.vocab_size, size=(rows, length))
        return tokens, np.ones_like(tokens), np.arange(length)[None].repeat(rows, 0)

    @pytest.mark.parametrize("config", SHAPES)
    def test_a_model_of_transformers_gives_the_same_logits(self, config, capsys):
        """Their random weights are imported."""
        described = huggingface.describe(config, **IDS)
        settings = self.transformers.GPT2Config(**described, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        settings.initializer_range = 0.3
        self.torch.manual_seed(0)
        theirs = self.transformers.GPT2LMHeadModel(settings).eval()
        tensors = {name: tensor.detach().numpy() for name, tensor in theirs.state_dict().items()}
        params = huggingface.params_of(tensors, config)
        tokens, segments, positions = self.row(config)
        with self.torch.no_grad():
            expected = theirs.double()(self.torch.tensor(tokens)).logits.numpy()
        found = self.ours(LanguageModel(config), params, tokens, segments, positions)
        self.report(capsys, f"logits of GPT-2, {config.num_layers} x {config.d_model}", found, expected)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "GPT2Model", "GPT2ForSequenceClassification"])
    def test_folders_written_by_transformers_can_be_imported(self, tmp_path, kind, dtype):
        """The weights are in several files, with the tensor names of their classes."""
        described = huggingface.describe(CONFIG, **IDS, is_reward_model="Classification" in kind)
        self.torch.manual_seed(0)
        settings = self.transformers.GPT2Config(**described, initializer_range=0.3)
        theirs = getattr(self.transformers, kind)(settings).eval().to(getattr(self.torch, dtype))
        theirs.save_pretrained(tmp_path, max_shard_size="30KB")
        assert (tmp_path / pretrained.INDEX).exists()
        found = huggingface.tensors_of(read(tmp_path, CONFIG), CONFIG)
        tensors = {f"transformer.{name.removeprefix('transformer.')}": t for name, t in theirs.state_dict().items()}
        for name, tensor in found.items():
            expected = tensors.get(name, theirs.state_dict().get(name)).float().numpy()
            np.testing.assert_array_equal(tensor, expected, err_msg=name)
        assert ("score.weight" in found) == ("Classification" in kind)

    @pytest.mark.parametrize("config", SHAPES[:2], ids=["tied", "untied"])
    def test_auto_model_loads_our_policy(self, tmp_path, config, capsys):
        params = written(tmp_path / "model", config)
        theirs = self.transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval().double()
        tokens, segments, positions = self.row(config)
        with self.torch.no_grad():
            expected = theirs(self.torch.tensor(tokens)).logits.numpy()
        found = self.ours(LanguageModel(config), params, tokens, segments, positions)
        self.report(capsys, "logits of an exported policy", found, expected)

    def test_auto_model_loads_our_reward_model(self, tmp_path, capsys):
        """Rows have several lengths and are padded on the right; the score is read at EOS."""
        params = fakes.params(ScalarModel(CONFIG))
        params["head"]["bias"] = jnp.float32(1.75)
        described = huggingface.describe(CONFIG, **IDS, is_reward_model=True)
        pretrained.write(tmp_path / "model", described, huggingface.tensors_of(params, CONFIG), {})
        theirs = (
            self.transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval().double()
        )
        tokens, segments, positions = self.row(CONFIG)
        lengths = np.array([17, 9, 4])
        inside = np.arange(17) < lengths[:, None]
        tokens = np.where(inside, tokens, 0)
        tokens[np.arange(3), lengths - 1] = IDS["eos_id"]
        with self.torch.no_grad():
            expected = theirs(self.torch.tensor(tokens), attention_mask=self.torch.tensor(inside)).logits[:, 0].numpy()
        scores = self.ours(ScalarModel(CONFIG), params, tokens, segments * inside, positions * inside)
        # The file has the offset as a change of float32 weights, which is rounded.
        found = scores[np.arange(3), lengths - 1]
        self.report(capsys, "scores of an exported reward model", found, expected, atol=1e-7)

    @pytest.mark.parametrize("config", SHAPES)
    def test_cached_greedy_decoding_equals_that_of_transformers(self, tmp_path, config):
        """Prompts of several lengths, padded on the left, are each continued to EOS or to the maximum length."""
        params = written(tmp_path / "model", config)
        theirs = self.transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval().double()
        tokens, segments, _ = self.row(config, rows=4, length=6)
        segments = (np.arange(6) >= np.array([[0], [2], [5], [1]])).astype(np.int32)
        tokens = tokens * segments
        with self.torch.no_grad():
            expected = theirs.generate(
                self.torch.tensor(tokens),
                attention_mask=self.torch.tensor(segments),
                do_sample=False,
                use_cache=True,
                max_new_tokens=12,
            ).numpy()[:, 6:]
        prompts = PromptBatch(tokens.astype(np.int32), segments)
        keys = sampling.row_keys(jax.random.key(0), len(tokens))
        model, choose = LanguageModel(config), sampling.greedy
        episodes, _ = sampling.sample(model, params, prompts, keys, choose, max_response=12, **IDS)
        found = np.where(episodes.response_mask > 0, episodes.tokens[:, 6:], 0)[:, : expected.shape[1]]
        np.testing.assert_array_equal(found, expected)

    def report(self, capsys, what, found, expected, atol=1e-11):
        assert found.dtype == expected.dtype == np.float64
        error = np.abs(found - expected).max()
        with capsys.disabled():
            print(f"\n  {what}: largest difference {error:.1e}, largest value {np.abs(expected).max():.1f}", end="")
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
