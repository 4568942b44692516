"""Tasks whose examples are in sets that tfds has prepared, here by small builders with the fields of the real ones."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from instructjax.data import tfds_sets
from instructjax.errors import DataError, RecordError
from instructjax.stages import public_tasks

TEXT = tfds.features.Text()
HELLASWAG = {"context": TEXT, "endings": tfds.features.Sequence(TEXT), "label": np.int32}
QUESTIONS = [{"context": f"Ein Käuzchen {i}", "endings": ["schläft", "fliegt"], "label": i % 2} for i in range(3)]
WSC = {"text": TEXT, "span1_text": TEXT, "span2_text": TEXT, "span2_index": np.int32}
WSC["label"] = tfds.features.ClassLabel(names=["False", "True"])
PRONOUN = {"text": "the owl saw the fox and it slept", "span1_text": "owl", "span2_text": "it", "span2_index": 6}
RTE = {"premise": TEXT, "hypothesis": TEXT, "label": tfds.features.ClassLabel(names=["entailment", "not_entailment"])}
PREMISES = [{"premise": f"Owl {i} sleeps.", "hypothesis": "It sleeps.", "label": "not_entailment"} for i in range(2)]


def build(folder, set_name, features, examples, config="", version="1.0.0", split="validation"):
    """Prepares a set in a folder, as `tfds build --file_format=array_record` does."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = set_name
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version=VERSION)] if config else []

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {split: self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(examples)

    Builder(data_dir=str(folder), file_format="array_record").download_and_prepare()


def test_tasks_without_a_file_are_read_from_the_folder_of_tfds(tmp_path):
    build(tmp_path, "hellaswag", HELLASWAG, QUESTIONS[:2], version="9.1.0")
    build(tmp_path, "hellaswag", HELLASWAG, QUESTIONS, version="10.0.0")
    build(tmp_path, "super_glue", RTE, PREMISES, config="rte")
    pronouns = [
        {**PRONOUN, "text": f"{PRONOUN['text']} {i}", "label": label} for i, label in enumerate(("True", "False"))
    ]
    build(tmp_path, "super_glue", WSC, pronouns, config="wsc.fixed")
    build(
        tmp_path,
        "cnn_dailymail",
        {"article": TEXT, "highlights": TEXT},
        [{"article": "a", "highlights": "b"}] * 2,
        split="test",
    )
    hellaswag, wsc, rte, cnn_dm = cases = list(public_tasks.read_cases(epath.Path(tmp_path), ()))
    assert [case.task.name for case in cases] == ["hellaswag", "wsc", "rte", "cnn_dm"]
    assert sorted(example.text for example in hellaswag.examples) == [question["context"] for question in QUESTIONS]
    assert {(example.text[-1], example.choices, example.answer) for example in hellaswag.examples} == {
        (str(i), (" schläft", " fliegt"), i % 2) for i in range(3)
    }
    assert sorted(example.answer for example in wsc.examples) == [0, 1]
    assert all("the owl saw the fox and *it* slept" in example.text for example in wsc.examples)
    assert [example.answer for example in rte.examples] == [1, 1]
    assert [example.references for example in cnn_dm.examples] == [("b",), ("b",)]


def test_a_file_comes_before_a_set(tmp_path):
    build(tmp_path, "super_glue", RTE, PREMISES, config="rte")
    (tmp_path / "superglue" / "RTE").mkdir(parents=True)
    lines = [f'{{"premise": "{i}", "hypothesis": "a", "label": "entailment"}}\n' for i in range(2)]
    (tmp_path / "superglue" / "RTE" / "val.jsonl").write_text("".join(lines))
    (case,) = public_tasks.read_cases(epath.Path(tmp_path), ["rte"])
    assert [example.answer for example in case.examples] == [0, 0]


def test_a_set_that_cannot_be_read_is_named(tmp_path):
    build(tmp_path, "hellaswag", {"context": TEXT}, [{"context": "a"}])
    folder = tfds_sets.find(epath.Path(tmp_path), "hellaswag")
    with pytest.raises(RecordError, match="1.0.0: validation: example 1: label: expected, found only context, ctx$"):
        list(public_tasks.read_cases(epath.Path(tmp_path), ["hellaswag"]))
    with pytest.raises(DataError, match="1.0.0: expected a split test, found validation$"):
        list(tfds_sets.read(folder, "test"))
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match="expected a set in array_record, found tfrecord; build it with --file_format="):
        list(tfds_sets.read(folder, "validation"))
