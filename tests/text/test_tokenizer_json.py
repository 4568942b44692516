"""Tokenizers of other models, and SentencePiece models exported as tokenizer.json."""

import functools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.errors import TokenizerError
from instructjax.text import export, special_tokens, tokenizer_files
from instructjax.text.huggingface import HuggingFaceTokenizer
from instructjax.text.sentencepiece import SentencePieceTokenizer
from instructjax.text.special_tokens import END_OF_TEXT, PAD

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra huggingface")

LINES = [
    "the quick brown fox jumps over the lazy dog .",
    "say it : the owl, 3 cats; and\ta fox!",
    "é ÿ 狐 fox's",
    "\n\nfox\n\n  owl \n\n",
] * 4


def learned(lines=LINES, size=400):
    pairs = tokenizers.ByteLevelBPETokenizer()
    pairs.train_from_iterator(lines, vocab_size=size, special_tokens=[END_OF_TEXT], show_progress=False)
    return pairs


PAIRS = learned()
BPE = HuggingFaceTokenizer.from_bytes(PAIRS.to_str().encode())
PIECES = SentencePieceTokenizer.train(LINES, 330)
CONVERTED = tokenizers.Tokenizer.from_str(export.tokenizer_json(PIECES).decode())

words = st.sampled_from(
    ["the", " fox", "\n", " ", "  ", "owl", "ÿ", "狐", "\ufffd", "<|endoftext|>", "<|pad|>", "'s", "\t", "12"]
)
texts = st.text() | st.lists(words).map("".join)


@given(texts)
def test_decode_inverts_encode_and_no_text_gives_pad_or_eos(text):
    ids = BPE.encode(text)
    assert BPE.decode(ids) == text
    assert not {BPE.pad_id, BPE.eos_id} & set(ids)
    assert BPE.decode([BPE.pad_id, *ids, BPE.eos_id, BPE.pad_id]) == text


@given(texts, texts.filter(lambda text: text and not text[0].isspace()))
def test_prompt_and_response_have_the_tokens_of_one_document(prompt, response):
    """GPT-2 encodes "\\n\\n" as one token at the end of a text, and as two before a word."""
    opening = prompt + "\n"
    assert BPE.encode(opening + response) == BPE.encode_opening(opening) + BPE.encode(response)


def test_two_line_breaks_are_one_token_only_at_the_end():
    (double,) = BPE.encode("\n\n")
    assert BPE.encode("fox\n\n") == [*BPE.encode("fox"), double]
    assert BPE.encode_opening("fox\n\n") == [*BPE.encode("fox"), *BPE.encode("\n") * 2]
    assert BPE.encode_opening("fox: ") == BPE.encode("fox: ")


@given(st.lists(st.sampled_from([*"abcfox thew ", " fox", "owl", "3"])).map("".join))
def test_the_vocabulary_is_the_given_one(text):
    assert BPE.encode(text) == PAIRS.encode(text).ids


def test_pad_and_eos_are_ids_of_the_given_vocabulary():
    assert BPE.vocab_size == PAIRS.get_vocab_size()
    assert PAIRS.id_to_token(BPE.eos_id) == END_OF_TEXT and PAIRS.id_to_token(BPE.pad_id) == "ÿ"
    smaller = HuggingFaceTokenizer.from_bytes(learned(size=300).to_str().encode())
    assert len(BPE.fingerprint) == 16 and BPE.fingerprint != smaller.fingerprint


def test_a_vocabulary_with_its_own_pad_keeps_it():
    described = json.loads(PAIRS.to_str())
    pad = described["added_tokens"][0] | {"id": BPE.vocab_size, "content": PAD}
    content = json.dumps({**described, "added_tokens": [*described["added_tokens"], pad]}).encode()
    found = HuggingFaceTokenizer.from_bytes(content)
    assert found.pad_id == BPE.vocab_size and found.vocab_size == BPE.vocab_size + 1
    assert found.to_bytes() == content


@pytest.mark.parametrize("written", ["ÿ ÿ", ["ÿ", "ÿ"]])
def test_merges_of_the_byte_0xff_are_left_out(written):
    described = json.loads(PAIRS.to_str())
    described["model"]["vocab"]["ÿÿ"] = PAIRS.get_vocab_size()
    merges = described["model"]["merges"]
    described["model"]["merges"] = [*(" ".join(pair) if written == "ÿ ÿ" else pair for pair in merges), written]
    found = HuggingFaceTokenizer.from_bytes(json.dumps(described).encode())
    assert found.pad_id == BPE.pad_id and len(json.loads(found.to_bytes())["model"]["merges"]) == len(merges)
    assert found.encode("the ÿ fox") == BPE.encode("the ÿ fox")


def test_files(tmp_path):
    BPE.save(tmp_path / "one" / "tokenizer.json")
    (tmp_path / "two").mkdir()
    PAIRS.save_model(str(tmp_path / "two"))
    PIECES.save(tmp_path / "pieces.model")
    text = "the quick owl's ÿ"
    for place in ("one", "one/tokenizer.json", "two"):
        found = tokenizer_files.load(tmp_path / place)
        assert found.encode(text) == BPE.encode(text) and found.eos_id == BPE.eos_id
        assert tokenizer_files.from_bytes(found.to_bytes()).fingerprint == found.fingerprint
    assert tokenizer_files.load(tmp_path / "pieces.model").encode(text) == PIECES.encode(text)


@pytest.mark.parametrize("ours", [BPE, PIECES], ids=["byte pairs", "pieces"])
def test_an_exported_tokenizer_can_be_imported(tmp_path, ours):
    for name, content in export.pretrained_files(ours, 64).items():
        (tmp_path / name).write_bytes(content)
    found = tokenizer_files.load(tmp_path)
    assert found.fingerprint == ours.fingerprint and (found.pad_id, found.eos_id) == (ours.pad_id, ours.eos_id)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "expected a tokenizer.json, found KeyError('model')"),
        (b'{"model": {"type": "Unigram"}}', "expected a tokenizer.json, found KeyError('vocab')"),
        (b'{"model": ', "expected a tokenizer.json"),
        (b"\x00\x01", "expected a SentencePiece model"),
        (b"", "expected a SentencePiece model"),
    ],
)
def test_files_that_are_not_a_tokenizer_are_rejected(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(TokenizerError) as error:
        tokenizer_files.load(tmp_path / "file")
    assert str(error.value).startswith(f"{tmp_path}/file: {message}") and "\n" not in str(error.value)


def test_a_vocabulary_without_end_of_text_is_rejected(tmp_path):
    described = json.loads(PAIRS.to_str())
    described["added_tokens"] = []
    del described["model"]["vocab"][END_OF_TEXT]
    with pytest.raises(TokenizerError, match="expected a token for EOS, such as <.endoftext.>"):
        HuggingFaceTokenizer.from_bytes(json.dumps(described).encode())
    for place, message in (("nowhere", "found no such file"), ("", "merges.txt, found neither")):
        with pytest.raises(TokenizerError, match=message):
            tokenizer_files.load(tmp_path / place)


def test_characters_without_a_token_are_found():
    """As in SmolLM2, which has no token for 21 bytes."""
    described = json.loads(PAIRS.to_str())
    symbols = special_tokens.byte_symbols()
    for byte in (0x04, 0xF1, 0xC0):
        del described["model"]["vocab"][symbols[byte]]
    found = HuggingFaceTokenizer.from_bytes(json.dumps(described).encode())
    assert found.encode("a\x04b") == [*found.encode("a"), *found.encode("b")]
    for text, char in [("é\x04\U00050000", "\x04"), ("狐 \U00050000", "\U00050000"), ("狐 é \x05", ""), ("", "")]:
        assert found.lost(text) == char
    assert BPE.lost("\x04\U00050000") == "" and BPE.altered is None


def test_byte_symbols_are_those_of_the_package():
    assert sorted(special_tokens.byte_symbols().values()) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    encoded = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("é \n\0")
    assert encoded[0][0] == "".join(special_tokens.byte_symbols()[byte] for byte in "é \n\0".encode())


MERGES = ["t h", "th e", "▁ the"]


def spaced(**changes):
    """Returns a tokenizer.json of Llama 2's kind: spaces are "▁", and one is put before a text."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = ["<unk>", "<s>", "</s>", *bytes_, "▁", *"thefox", "th", "the", "▁the"]
    special = [{"id": i, "content": vocab[i], **special_tokens.FLAGS} for i in range(3)]
    text = {"Sequence": {"id": "A", "type_id": 0}}
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    described = {
        "added_tokens": special,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text],
            "pair": [begin, text, text],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {token: number for number, token in enumerate(vocab)},
            "merges": [list(pair.split(" ")) for pair in MERGES],
        },
    }
    return json.dumps({**described, **changes}).encode()


def test_a_tokenizer_of_llama_2s_kind(capsys, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(spaced())
    found = tokenizer_files.load(tmp_path / "tokenizer.json")
    ids = special_tokens.ids_of(json.loads(spaced()))
    assert (found.bos, found.eos_ids, found.pad_id) == ((1,), (2,), ids["<0xFF>"])
    assert found.encode("the fox") == [ids[token] for token in ("▁the", "▁", "f", "o", "x")]
    assert not {0, 1, 2, found.pad_id} & set(found.encode("<s>the</s> <unk> <0xFF>"))
    assert found.decode([1, *found.encode("the fox"), 2]) == "the fox"
    text, given_back = found.altered
    assert given_back == text.replace("▁", " ") != text
    assert capsys.readouterr().out == (
        f"warning: {tmp_path}/tokenizer.json: not every text is given back: {text!a} becomes {given_back!a}\n"
    )


def chat_tokens(texts, **changes):
    """Returns a byte-level BPE with these special tokens after <|endoftext|>."""
    pairs = tokenizers.ByteLevelBPETokenizer()
    pairs.train_from_iterator(LINES, vocab_size=300, special_tokens=[END_OF_TEXT, *texts], show_progress=False)
    return json.dumps({**json.loads(pairs.to_str()), **changes}).encode()


def folder_of(path, content, **others):
    path.mkdir()
    (path / "tokenizer.json").write_bytes(content)
    for name, value in others.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


TURNS = ["<|im_start|>", "<|im_end|>", "<|tool|>"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("config", "generation", "ends", "pad"),
    [
        ({}, {}, [END_OF_TEXT], "<|tool|>"),
        ({"eos_token": "<|im_end|>"}, {}, ["<|im_end|>"], "<|tool|>"),
        ({"eos_token": {"content": "<|im_end|>"}}, {"eos_token_id": None}, ["<|im_end|>"], "<|tool|>"),
        ({}, {"eos_token_id": [2, 0]}, ["<|im_end|>", END_OF_TEXT], "<|tool|>"),
        ({}, {"eos_token_id": "<|im_end|>"}, ["<|im_end|>"], "<|tool|>"),
        ({"pad_token": END_OF_TEXT, "eos_token": "<|im_end|>"}, {}, ["<|im_end|>"], END_OF_TEXT),
        ({"pad_token": "<|im_end|>", "eos_token": "<|im_end|>"}, {}, ["<|im_end|>"], "<|tool|>"),
        ({"chat_template": CHATML, "eos_token": "<|im_end|>"}, {}, [END_OF_TEXT, "<|im_end|>"], "<|tool|>"),
        ({"bos_token": "<|tool|>"}, {}, [END_OF_TEXT], "<|im_end|>"),
    ],
)
def test_what_a_folder_says_about_special_tokens(tmp_path, config, generation, ends, pad):
    content = chat_tokens(TURNS)
    folder = folder_of(tmp_path / "model", content, tokenizer_config=config, generation_config=generation)
    found = tokenizer_files.load(folder)
    plain = tokenizers.Tokenizer.from_str(content.decode())
    assert [plain.id_to_token(i) for i in found.eos_ids] == ends and plain.id_to_token(found.pad_id) == pad
    assert found.eos_id == found.eos_ids[0] and found.bos == ()
    assert found.vocab_size == plain.get_vocab_size() and found.chat_template == config.get("chat_template", "")
    assert tokenizer_files.from_bytes(found.to_bytes()).fingerprint == found.fingerprint
    written = export.pretrained_files(found, 64)
    assert tokenizers.Tokenizer.from_str(written["tokenizer.json"].decode()).get_vocab_size() == found.vocab_size
    again = folder_of(tmp_path / "again", written.pop("tokenizer.json"), config={"eos_token_id": list(found.eos_ids)})
    (again / "tokenizer_config.json").write_bytes(written["tokenizer_config.json"])
    assert tokenizer_files.load(again).fingerprint == found.fingerprint


@pytest.mark.parametrize("place", ["text", "by name", "jinja", "null"])
def test_where_a_folder_may_have_its_chat_template(tmp_path, place):
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    given = {"text": CHATML, "by name": named, "jinja": "x", "null": None}[place]
    folder = folder_of(tmp_path / "model", chat_tokens(TURNS), tokenizer_config={"chat_template": given})
    if place == "jinja":
        (folder / "chat_template.jinja").write_text(CHATML)
    assert tokenizer_files.load(folder).chat_template == ("" if place == "null" else CHATML)


@given(st.lists(words | st.sampled_from(TURNS) | st.text(max_size=3)).map("".join))
def test_special_tokens_in_a_text_are_text(text):
    found = HuggingFaceTokenizer.from_bytes(CHAT)
    ids = found.encode(text)
    assert not {token["id"] for token in found.special.values()} & set(ids) and found.decode(ids) == text
    plain = tokenizers.Tokenizer.from_str(CHAT.decode())
    if not any(token in text for token in (*TURNS, END_OF_TEXT)):
        assert ids == plain.encode(text).ids


CHAT = chat_tokens(TURNS)


def test_added_tokens_that_are_not_special_are_matched_in_text():
    described = json.loads(chat_tokens(TURNS))
    spaces = {
        "id": described["added_tokens"][-1]["id"],
        "content": "<|tool|>",
        **special_tokens.FLAGS,
        "special": False,
    }
    described["added_tokens"][-1] = spaces
    found = HuggingFaceTokenizer.from_bytes(json.dumps(described).encode())
    assert spaces["id"] in found.encode("fox<|tool|>") and "<|tool|>" not in found.special
    assert found.decode(found.encode("fox<|tool|>")) == "fox<|tool|>"


@functools.cache
def overlapping(seed):
    """Returns (a tokenizer of strings of two letters, the same as tokenizer.json)."""
    rng = random.Random(seed)
    pieces = SentencePieceTokenizer.train(["".join(rng.choices("ab ", k=20)) for _ in range(200)], 310)
    return pieces, tokenizers.Tokenizer.from_str(export.tokenizer_json(pieces).decode())


class TestConversion:
    @given(st.text().filter(lambda text: not set(text) & {"\u2581", "<"}) | st.lists(words).map("".join))
    def test_the_exported_tokenizer_gives_the_same_ids_and_text(self, text):
        text = text.replace("\u2581", "")
        assert CONVERTED.encode(text).ids == PIECES.encode(text)
        assert CONVERTED.decode(PIECES.encode(text), skip_special_tokens=False) == text

    @given(st.integers(0, 5), st.text("ab ", max_size=40))
    def test_pieces_that_can_be_split_in_many_ways_give_the_same_ids(self, seed, text):
        pieces, converted = overlapping(seed)
        assert converted.encode(text).ids == pieces.encode(text)

    def test_sizes(self):
        assert CONVERTED.get_vocab_size() == PIECES.vocab_size
        assert CONVERTED.token_to_id("</s>") == PIECES.eos_id and CONVERTED.token_to_id("<pad>") == PIECES.pad_id


@pytest.mark.parity
def test_a_tokenizer_written_by_transformers_can_be_imported(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra parity")
    PAIRS.save_model(str(tmp_path))
    theirs = transformers.GPT2Tokenizer.from_pretrained(str(tmp_path))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    ours = tokenizer_files.load(tmp_path / "theirs")
    for text in (*LINES, "fox  ÿ\n\n 狐", "狐\n\nfox"):
        assert ours.encode(text) == theirs(text)["input_ids"] == BPE.encode(text)
    assert (ours.eos_id, ours.vocab_size) == (theirs.eos_token_id, len(theirs))


@pytest.mark.parity
@pytest.mark.parametrize("ours", [BPE, PIECES], ids=["byte pairs", "pieces"])
def test_auto_tokenizer_loads_either_kind(tmp_path, ours):
    transformers = pytest.importorskip("transformers", reason="needs the extra parity")
    for name, content in export.pretrained_files(ours, 64).items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in (*LINES, "fox  ÿ\n\n 狐", "狐\n\nfox"):
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
        assert theirs(text + theirs.eos_token)["input_ids"] == [*ours.encode(text), ours.eos_id]
    assert (theirs.eos_token_id, theirs.pad_token_id) == (ours.eos_id, ours.pad_id)
    assert len(theirs) == ours.vocab_size
