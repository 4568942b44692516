"""From imported to exported weights: configs/gpt2.py:tiny on human records, in separate processes."""

import gzip
import json
import os
import pathlib
import subprocess
import sys

import pytest

from configs import gpt2
from instructjax.models import huggingface, pretrained
from instructjax.models.config import TransformerConfig
from instructjax.models.transformer import LanguageModel
from instructjax.text import tokenizer_files
from tests import fakes
from tests.local_data import ABSENT, DATA, E2E

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra huggingface")
ROOT = pathlib.Path(__file__).resolve().parents[2]


def script(name, *flags):
    return subprocess.run(
        [sys.executable, f"experiments/{name}", *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def random_gpt2(folder, texts, size=1500):
    """Writes a GPT-2 of the tiny recipe's shape, with random weights and a vocabulary trained on the texts."""
    pairs = tokenizers.ByteLevelBPETokenizer()
    pairs.train_from_iterator(texts, vocab_size=size, special_tokens=["<|endoftext|>"], show_progress=False)
    found = tokenizer_files.from_bytes(pairs.to_str().encode())
    shape = dict(gpt2.get_config("tiny").model)
    config = TransformerConfig(**shape, vocab_size=found.vocab_size + 7)  # padded, like released models
    described = huggingface.describe(config, eos_id=found.eos_id, pad_id=found.pad_id)
    params = fakes.params(LanguageModel(config), noise=0.08)
    pretrained.write(folder, described, huggingface.tensors_of(params, config), {"tokenizer.json": found.to_bytes()})
    return found


@pytest.mark.slow
@pytest.mark.skipif(not E2E.is_dir() or not (DATA / "storybooks").is_dir(), reason=ABSENT)
def test_a_whole_run_starts_from_imported_weights(tmp_path):
    lines = gzip.decompress((DATA / "storybooks" / "storybooks.jsonl.gz").read_bytes()).decode().splitlines()[:300]
    lines += gzip.decompress((E2E / "quality.jsonl.gz").read_bytes()).decode().splitlines()[:300]
    texts = [record.get("text") or record["mr"] for record in map(json.loads, lines)]
    found = random_gpt2(tmp_path / "gpt2", texts)
    run = tmp_path / "run"
    flags = ["--config=configs/gpt2.py:tiny", f"--config.e2e.directory={DATA}", f"--workdir={run}"]

    imported = script("import_weights.py", *flags, f"--source={tmp_path / 'gpt2'}")
    assert imported.returncode == 0, imported.stderr[-2000:]
    source = [f"--config.pretrain.import_from={tmp_path / 'gpt2'}", f"--config.tokenizer.path={tmp_path / 'gpt2'}"]
    process = script("reproduce.py", *flags, *source)
    assert process.returncode == 0, process.stderr[-2000:]
    results = json.loads((run / "results.json").read_text())
    assert results["models"]["ppo_ptx"]["reward"]["n"] > 0
    assert json.loads((run / "pretrain" / "summary.json").read_text())["steps"] == 0

    for stage, architecture in (("ppo_ptx", "GPT2LMHeadModel"), ("reward", "GPT2ForSequenceClassification")):
        out = tmp_path / stage
        exported = script("export_weights.py", *flags, f"--stage={stage}", f"--output={out}")
        assert exported.returncode == 0, exported.stderr[-2000:]
        described, tensors = pretrained.read_config(out), pretrained.read_tensors(out)
        assert described["architectures"] == [architecture]
        assert described["vocab_size"] == found.vocab_size == tensors["transformer.wte.weight"].shape[0]
        assert tokenizer_files.load(out).fingerprint == found.fingerprint


@pytest.mark.skipif(not E2E.is_dir() or not (DATA / "storybooks").is_dir(), reason=ABSENT)
def test_a_model_of_another_shape_is_rejected_before_training(tmp_path):
    found = random_gpt2(tmp_path / "gpt2", ["name[Aromi], food[French]"], 300)
    flags = ["--config=configs/gpt2.py:tiny", f"--config.e2e.directory={DATA}", f"--workdir={tmp_path / 'run'}"]
    process = script("import_weights.py", *flags, f"--source={tmp_path / 'gpt2'}", "--config.model.num_layers=3")
    assert process.returncode == 2 and found.vocab_size
    last = process.stderr.splitlines()[-1]
    assert last == f"error: {tmp_path}/gpt2: model: expected num_layers 3, found num_layers 2"
    assert not (tmp_path / "run" / "pretrain").exists()
