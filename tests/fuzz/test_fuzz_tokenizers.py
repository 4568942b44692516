"""Any tokenizer files give a tokenizer that keeps its promises, or an InputError."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from instructjax import records
from instructjax.conversation import messages_of
from instructjax.data import layouts
from instructjax.text import huggingface, tokenizer_files
from instructjax.text.sentencepiece import SentencePieceTokenizer
from instructjax.text.special_tokens import END_OF_TEXT
from tests.fuzz import tries
from tests.recipes import LINES

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra huggingface")
model = pytest.importorskip("sentencepiece.sentencepiece_model_pb2", reason="needs protobuf")

PIECES = SentencePieceTokenizer.train(LINES, 290).to_bytes()
PAIRS = tokenizers.ByteLevelBPETokenizer()
PAIRS.train_from_iterator(LINES, vocab_size=270, special_tokens=[END_OF_TEXT], show_progress=False)
DESCRIBED = json.loads(PAIRS.to_str())
VOCAB, MERGES = DESCRIBED["model"]["vocab"], DESCRIBED["model"]["merges"]
TEXTS = ("", "the fox", " a\n\n b", "ÿ\0\u2581🦊")


def assert_keeps_its_promises_or_is_refused(place):
    with tries.only_input_errors():
        found = tokenizer_files.load(place)
        assert found.vocab_size < 3000  # twice the number of tokens and 1,024 are allowed
        assert found.pad_id != found.eos_id and {found.pad_id, found.eos_id} <= set(range(found.vocab_size))
        for text in TEXTS:
            ids = found.encode(text)
            assert found.decode(ids) == text or found.altered or found.lost(text)
            assert all(0 <= token < found.vocab_size for token in ids)
            assert not {found.pad_id, found.eos_id} & set(ids)


def without_vocabulary(described):
    """Removes vocabulary and merges, so that changes are drawn near the root and not among hundreds of pieces."""
    return {**described, "model": {**described["model"], "vocab": {}, "merges": []}}


@tries.tries
@given(data=st.data())
def test_a_tokenizer_json_of_other_values(tmp_path, data):
    described = data.draw(tries.changed_json(without_vocabulary(DESCRIBED)))
    if isinstance(described, dict) and isinstance(described.get("model"), dict):
        given_vocab, given_merges = described["model"].get("vocab"), described["model"].get("merges")
        vocab = data.draw(st.just(VOCAB) | tries.changed_json(VOCAB, most=2)) if given_vocab == {} else given_vocab
        merges = data.draw(st.just(MERGES) | tries.changed_json(MERGES, most=2)) if given_merges == [] else given_merges
        described = {**described, "model": {**described["model"], "vocab": vocab, "merges": merges}}
    (tmp_path / "tokenizer.json").write_bytes(tries.as_json(described))
    assert_keeps_its_promises_or_is_refused(tmp_path / "tokenizer.json")


@tries.tries
@given(content=tries.any_bytes(json.dumps(DESCRIBED, ensure_ascii=False).encode()))
@example(content=b"{" + b'"a":{' * 20_000)
def test_a_tokenizer_json_of_any_bytes(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert_keeps_its_promises_or_is_refused(tmp_path)


SETTINGS = {"eos_token": END_OF_TEXT, "bos_token": {"content": "a"}, "pad_token": None, "chat_template": "{{ 1 }}"}


@tries.tries
@given(
    config=tries.changed_json(SETTINGS).map(tries.as_json) | tries.any_bytes(json.dumps(SETTINGS).encode()),
    generation=tries.changed_json({"eos_token_id": [0, 1]}).map(tries.as_json),
)
def test_settings_of_any_kind(tmp_path, config, generation):
    (tmp_path / "tokenizer.json").write_bytes(tries.as_json(DESCRIBED))
    (tmp_path / "tokenizer_config.json").write_bytes(config)
    (tmp_path / "generation_config.json").write_bytes(generation)
    assert_keeps_its_promises_or_is_refused(tmp_path)


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + m.content + '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
TALK = [{"role": "user", "content": "a <|endoftext|>"}, {"role": "assistant", "content": "b"}]


@tries.tries
@given(
    template=st.just(CHATML) | tries.any_bytes(CHATML.encode()).map(lambda found: found.decode(errors="replace")),
    messages=tries.changed_json([*TALK, *TALK[:1]]),
)
def test_chat_templates_and_messages_of_any_kind(template, messages):
    given = {"chat_template": template}
    tokenizer = huggingface.HuggingFaceTokenizer.from_bytes(tries.as_json(DESCRIBED), "FILE", given)
    with tries.only_input_errors():
        record = records.from_dict({"prompt": messages}, records.Prompt)
        found = layouts.Layout(tokenizer, "", 9999, 9, kind="chat").tokenize_prompt(record.prompt)
        assert len(found.tokens) == len(found.answered) and tokenizer.pad_id not in found.tokens
        if template == CHATML:
            assert found.tokens.count(tokenizer.eos_id) == len(messages_of(record.prompt))


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    gguf = pytest.importorskip("gguf", reason="needs the extra gguf")
    writer = gguf.GGUFWriter(tmp_path_factory.mktemp("gguf") / "a.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(list(VOCAB))
    writer.add_token_types([3, *[1] * (len(VOCAB) - 1)])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return writer.path.read_bytes()


@tries.tries
@given(data=st.data())
def test_the_tokenizer_of_a_gguf_file_of_any_bytes(tmp_path, gguf_file, data):
    (tmp_path / "a.gguf").write_bytes(data.draw(tries.any_bytes(gguf_file)))
    assert_keeps_its_promises_or_is_refused(tmp_path / "a.gguf")


@tries.tries
@given(
    vocab=tries.changed_json(VOCAB).map(tries.as_json) | tries.any_bytes(json.dumps(VOCAB).encode()),
    merges=tries.any_bytes("\n".join(["#version: 0.2", *map(" ".join, MERGES), ""]).encode()),
)
@example(vocab=tries.as_json(VOCAB | {"a": 2**31}), merges=b"#version: 0.2\n")  # once took 8 GiB and minutes
def test_vocabulary_and_merges_of_any_kind(tmp_path, vocab, merges):
    (tmp_path / "vocab.json").write_bytes(vocab)
    (tmp_path / "merges.txt").write_bytes(merges)
    assert_keeps_its_promises_or_is_refused(tmp_path)


@st.composite
def changed_model(draw):
    """Returns a SentencePiece model with changed pieces or changed settings."""
    changed = model.ModelProto.FromString(PIECES)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(changed.pieces) - 1))
        piece, what = changed.pieces[place], draw(st.integers(0, 8))
        if what == 0:
            piece.piece = draw(
                tries.odd_text.filter(lambda text: text != "\ud800") | st.sampled_from(["</s>", "▁", "a"])
            )
        elif what == 1:
            piece.type = draw(st.integers(1, 6))
        elif what == 2:
            piece.score = draw(st.floats(width=32))
        elif what == 3:
            del changed.pieces[place]
        elif what == 4:
            changed.pieces.add().CopyFrom(piece)
        elif what == 5:
            changed.normalizer_spec.precompiled_charsmap = draw(st.binary(max_size=300))
        elif what == 6:
            name = draw(st.sampled_from(["add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces"]))
            setattr(changed.normalizer_spec, name, draw(st.booleans()))
        elif what == 7:
            changed.trainer_spec.model_type = draw(st.integers(1, 4))
        else:
            name = draw(st.sampled_from(["unk_id", "bos_id", "eos_id", "pad_id"]))
            setattr(changed.trainer_spec, name, draw(st.integers(-1, 300) | st.sampled_from([2**31 - 1, -(2**31)])))
    return changed.SerializeToString()


@tries.tries
@given(content=changed_model() | tries.any_bytes(PIECES))
@example(content=PIECES.replace(b"<0x9A>", b"<0x9\xbe>"))  # SentencePiece's message is not valid text
def test_a_sentencepiece_model_of_any_kind(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    assert_keeps_its_promises_or_is_refused(tmp_path)
