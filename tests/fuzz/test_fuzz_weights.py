"""Any model folder gives finite weights of the recipe's model or an InputError."""

import dataclasses
import json
import shutil
import struct

import jax
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from instructjax.errors import CheckpointError
from instructjax.models import huggingface, pretrained
from instructjax.models.transformer import LanguageModel
from instructjax.stages import imported
from instructjax.text.sentencepiece import SentencePieceTokenizer
from tests import fakes
from tests.fuzz import tries
from tests.recipes import LINES

pytest.importorskip("safetensors", reason="needs the extra huggingface")

TOKENIZER = SentencePieceTokenizer.train(LINES, 290)
MODEL = LanguageModel(
    dataclasses.replace(fakes.CONFIG, vocab_size=290, num_layers=1, d_model=4, num_heads=1, d_head=4, d_ff=8)
)
DESCRIBED = huggingface.describe(MODEL.config, eos_id=TOKENIZER.eos_id, pad_id=TOKENIZER.pad_id)
INDEX = {
    "metadata": {"total_size": 1},
    "weight_map": {"transformer.wte.weight": "model.safetensors", "b": "b.safetensors"},
}


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """Returns the folder of a valid model, whose files are replaced one by one."""
    folder = tmp_path_factory.mktemp("valid") / "model"
    params = fakes.params(MODEL)
    pretrained.write(folder, DESCRIBED, huggingface.tensors_of(params, MODEL.config), {})
    return folder


def assert_fits_or_is_refused(folder):
    with tries.only_input_errors():
        params = imported.read(str(folder), MODEL, TOKENIZER)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def folder_with(tmp_path, valid, name, content):
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(valid, folder)
    (folder / name).write_bytes(content)
    return folder


@tries.tries
@given(content=tries.changed_json(DESCRIBED).map(tries.as_json) | tries.any_bytes(json.dumps(DESCRIBED).encode()))
@example(content=json.dumps(DESCRIBED | {"n_layer": 10**9}).encode())
@example(content=b"[" * 100_000)
def test_a_config_of_any_kind(tmp_path, valid, content):
    assert_fits_or_is_refused(folder_with(tmp_path, valid, "config.json", content))


@tries.tries
@given(content=tries.changed_json(INDEX).map(tries.as_json) | tries.any_bytes(json.dumps(INDEX).encode()))
@example(content=b'{"weight_map": ["model.safetensors"]}')
@example(content=b'{"weight_map": {"a": {}}}')
@example(content=b'{"weight_map": {"a": "%s.safetensors"}}' % (b"[" * 20_000))
@example(content=b'{"weight_map": {"a": "../model/model.safetensors"}}')
def test_an_index_of_any_kind(tmp_path, valid, content):
    assert_fits_or_is_refused(folder_with(tmp_path, valid, "model.safetensors.index.json", content))


def parted(valid):
    """Returns (header, arrays) of the weights in the valid folder."""
    content = (valid / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


@tries.tries
@given(data=st.data())
def test_a_header_of_any_kind(tmp_path, valid, data):
    header, arrays = parted(valid)
    text = data.draw(tries.changed_json(header).map(tries.as_json) | tries.any_bytes(json.dumps(header).encode()))
    size = data.draw(st.just(len(text)) | st.integers(0, 2**64 - 1) | st.sampled_from([0, 2**63, 10**8]))
    content = struct.pack("<Q", size) + text + arrays
    assert_fits_or_is_refused(folder_with(tmp_path, valid, "model.safetensors", content))


@tries.tries
@given(data=st.data())
def test_arrays_of_any_bytes(tmp_path, valid, data):
    content = (valid / "model.safetensors").read_bytes()
    changed = data.draw(tries.any_bytes(content) | st.integers(0, len(content)).map(lambda size: content[:size]))
    assert_fits_or_is_refused(folder_with(tmp_path, valid, "model.safetensors", changed))


def test_a_tensor_with_a_long_name(tmp_path, valid):
    header, arrays = parted(valid)
    names = list(header)
    header["x" * 20_000] = header.pop(names[-1])
    text = tries.as_json(header)
    folder = folder_with(tmp_path, valid, "model.safetensors", struct.pack("<Q", len(text)) + text + arrays)
    with pytest.raises(CheckpointError) as error:
        imported.read(str(folder), MODEL, TOKENIZER)
    assert "2 tensors do not fit" in str(error.value) and len(str(error.value)) < 600
