"""Tokenizers"""

import io
import json
import sys

import sentencepiece

from instructjax.text import tokenizer_files
from instructjax.text.sentencepiece import SentencePieceTokenizer
from instructjax.text.special_tokens import END_OF_TEXT
from tests.recipes import LINES, changed, prepare, recipe
from tests.wrong_input.fault import fault


def pieces(**options):
    """Returns the bytes of a SentencePiece model, as other tools may train one."""
    model = io.BytesIO()
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    ours = {"model_type": "bpe", "vocab_size": 290, "normalization_rule_name": "identity", "byte_fallback": True, **ids}
    ours |= {"remove_extra_whitespaces": False, "add_dummy_prefix": False, "user_defined_symbols": ["\n"]}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, minloglevel=2, **(ours | options)
    )
    return model.getvalue()


def pairs():
    """Returns a tokenizer.json in the form that the package writes."""
    import tokenizers

    learned = tokenizers.ByteLevelBPETokenizer()
    learned.train_from_iterator(LINES, vocab_size=270, special_tokens=[END_OF_TEXT], show_progress=False)
    return json.loads(learned.to_str())


def load(tmp_path, content, name="tokenizer.model"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return tokenizer_files.load(path)


@fault("a missing file", "PATH: expected a tokenizer, found no such file")
def test_no_such_file(tmp_path):
    prepare(changed(recipe(tmp_path), tokenizer__path=str(tmp_path / "a.model")), tmp_path / "run")


@fault("a folder without a tokenizer", "PATH: expected tokenizer.json, or vocab.json and merges.txt, found neither")
def test_no_tokenizer(tmp_path):
    tokenizer_files.load(tmp_path)


@fault("a file that is not a SentencePiece model", "PATH: expected a SentencePiece model, found other data")
def test_other_data(tmp_path):
    load(tmp_path, b"the fox and the owl")


@fault("SentencePiece with other special ids", "PATH: expected pad, eos and unk to be 0, 1 and 2, found (-1, 2, 0)")
def test_other_ids(tmp_path):
    load(tmp_path, pieces(pad_id=-1, eos_id=2, unk_id=0, bos_id=1))


@fault(
    "SentencePiece without byte fallback", "PATH: expected a model with all bytes (byte_fallback), found none for 0x00"
)
def test_no_bytes(tmp_path):
    load(tmp_path, pieces(byte_fallback=False, vocab_size=40))


@fault(
    "a SentencePiece model that changes text",
    "PATH: expected a model that gives back every text, found one that alters TEXT",
)
def test_normalizing_pieces(tmp_path):
    load(tmp_path, pieces(normalization_rule_name="nmt_nfkc"))


@fault("a truncated tokenizer.json", "PATH: expected a tokenizer.json, found JSONDecodeError(TEXT)")
def test_cut_json(tmp_path):
    load(tmp_path, json.dumps(pairs()).encode()[:-100], "tokenizer.json")


@fault("a tokenizer.json without a vocabulary", "PATH: expected a tokenizer.json, found KeyError('vocab')")
def test_no_vocabulary(tmp_path):
    load(tmp_path, {"model": {"type": "Unigram"}}, "tokenizer.json")


@fault(
    "a tokenizer.json without a token that ends a text",
    "PATH: expected a token for EOS, such as <|endoftext|>, <|end_of_text|>, </s>, <eos>, found none",
)
def test_no_end_of_text(tmp_path):
    described = pairs()
    del described["model"]["vocab"][END_OF_TEXT], described["added_tokens"][0]
    load(tmp_path, described, "tokenizer.json")


@fault("a tokenizer.json with a gap in its ids", "PATH: expected N tokens with different ids from 0, found others")
def test_gap(tmp_path):
    described = pairs()
    described["model"]["vocab"]["new"] = 10**9
    load(tmp_path, described, "tokenizer.json")


@fault(
    "a tokenizer.json without a token for PAD",
    "PATH: expected a special token for PAD that is not EOS, found none",
)
def test_no_pad(tmp_path):
    load(tmp_path, pairs() | {"decoder": None}, "tokenizer.json")


@fault(
    "a tokenizer in which text is encoded to EOS",
    "PATH: expected a tokenizer in which no text is encoded to EOS or PAD, found TEXT",
)
def test_reached_end(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "a"}')
    load(tmp_path, pairs(), "tokenizer.json")
    tokenizer_files.load(tmp_path)


@fault("an EOS that the tokenizer does not have", "PATH: expected the token 99999, which is EOS elsewhere, found none")
def test_unknown_end(tmp_path):
    (tmp_path / "config.json").write_text('{"eos_token_id": 99999}')
    load(tmp_path, pairs(), "tokenizer.json")
    tokenizer_files.load(tmp_path)


@fault("an EOS that is not an id", "PATH: eos_token_id: expected an id or a list of ids, found [True]")
def test_no_end(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [true]}')
    load(tmp_path, pairs(), "tokenizer.json")
    tokenizer_files.load(tmp_path)


@fault("special tokens that are not text", "PATH: bos_token: expected text, found 1")
def test_token_names(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": 1}')
    tokenizer_files.load(tmp_path)


@fault("a chat template that is not text", "PATH: chat_template: expected text, found 1")
def test_template_text(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 1}')
    tokenizer_files.load(tmp_path)


def gguf_file(tmp_path, pre="gpt-2", tokens=("a", "b")):
    """Returns a GGUF file with a tokenizer only."""
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(tokens))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return tmp_path / "a.gguf"


@fault(
    "a GGUF file whose tokenizer splits text in another way",
    "PATH: tokenizer.ggml.pre: expected one of gpt-2, smollm, llama-bpe, qwen2 of a gpt2, found 'new' of a 'gpt2'; "
    "set tokenizer.path to the model's tokenizer.json",
)
def test_other_splits(tmp_path):
    tokenizer_files.load(gguf_file(tmp_path, "new"))


@fault(
    "a GGUF file without merges", "PATH: tokenizer.ggml.tokens: expected tokens, their kinds and merges, found others"
)
def test_no_merges(tmp_path):
    tokenizer_files.load(gguf_file(tmp_path))


@fault("a tokenizer in a damaged GGUF file", "PATH: expected a GGUF file, found TEXT")
def test_damaged_gguf(tmp_path):
    load(tmp_path, b"GGUF", "a.gguf")


@fault("a vocab.json that is not a vocabulary", "PATH: expected the id of each token, found {'the': 'fox'}")
def test_vocab(tmp_path):
    (tmp_path / "vocab.json").write_text('{"the": "fox"}')
    (tmp_path / "merges.txt").write_text("")
    tokenizer_files.load(tmp_path)


@fault(
    "merges with tokens that are not in the vocabulary", "PATH: expected vocab.json and merges.txt of a BPE, found TEXT"
)
def test_merges(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(pairs()["model"]["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nno such\n")
    tokenizer_files.load(tmp_path)


@fault(
    "a vocabulary that is too large for the text",
    "tokenizer.vocab_size: expected at most N for so little text, found 9000",
)
def test_large_vocabulary():
    SentencePieceTokenizer.train(LINES, 9000)


@fault(
    "a vocabulary that is too small for the characters",
    "tokenizer.vocab_size: expected at least N for these characters, found 100; "
    "a smaller tokenizer.character_coverage leaves rare ones to bytes",
)
def test_small_vocabulary():
    SentencePieceTokenizer.train(LINES, 100)


def chat(tmp_path, template, **changes):
    """Prepares records with a chat template."""
    content = {"eos_token": END_OF_TEXT, "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer.json").write_text(json.dumps(pairs()))
    given = {"tokenizer__path": str(tmp_path), "data__template": "chat", "data__max_prompt": 20}
    prepare(changed(recipe(tmp_path), **(given | changes)), tmp_path / "run")


@fault(
    "a chat template without a tokenizer that has one",
    "tokenizer.path: expected a tokenizer with a chat template for data.template=chat, found none",
)
def test_no_template(tmp_path):
    chat(tmp_path, "", tokenizer__path="")


@fault(
    "a tokenizer without a chat template",
    "data.template: expected a tokenizer with a chat template, found one without; set data.template=separator",
)
def test_tokenizer_without_template(tmp_path):
    chat(tmp_path, "")


@fault("a chat template that is not jinja", "data.template: expected a jinja template, found TEXT")
def test_jinja(tmp_path):
    chat(tmp_path, "{% for")


@fault(
    "a chat template that fails",
    "data.template: expected messages that the chat template can write, found those of user (roles)",
)
def test_failing_template(tmp_path):
    chat(tmp_path, "{{ raise_exception('roles') }}")


@fault(
    "a chat template that opens an answer in another way than it writes one",
    "data.template: expected a chat template that opens an answer as it begins one, found '1' and '2'",
)
def test_template_without_beginning(tmp_path):
    chat(tmp_path, "{{ messages | length }}")


@fault(
    "a chat template that leaves no room for a prompt",
    "data.max_prompt: expected more than the N tokens of the chat template, found 2",
)
def test_no_room(tmp_path):
    chat(tmp_path, "{% for m in messages %}the fox{{ m.content }}{% endfor %}", data__max_prompt=2)


@fault(
    "every answer to be learned, without a chat template",
    "data.every_answer: expected False with data.template=separator, which does not tell answers apart, found True",
)
def test_every_answer(tmp_path):
    chat(tmp_path, "", data__template="separator", data__every_answer=True)


@fault(
    "every answer to be learned, with a chat template that does not end them",
    "data.every_answer: expected a chat template that writes a special token after every answer, found one that does "
    "not; set data.every_answer=False",
)
def test_answers_without_an_end(tmp_path):
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    chat(tmp_path, turns + "{% if add_generation_prompt %}assistant: {% endif %}", data__every_answer=True)


@fault(
    "a missing package for chat templates",
    "data.template: expected the package jinja2 to write chats, found none; pip install 'instructjax[huggingface]'",
)
def test_no_jinja(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2.sandbox", None)
    chat(tmp_path, "{{ messages }} and no jinja2")


@fault(
    "a missing package for tokenizers in GGUF files",
    "tokenizer: expected the package gguf for GGUF files, found none; pip install 'instructjax[gguf]'",
)
def test_no_gguf(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    load(tmp_path, b"GGUF", "a.gguf")


CONVERSATION = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
CONVERSATION += "{{ m.content + '\n' }}{% endfor %}"


@fault(
    "messages that the chat template refuses",
    "PATH:N: prompt: expected messages that the chat template can write, found those of system, user (no system)",
)
def test_refused_messages(tmp_path):
    record = {"prompt": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], "response": "c"}
    lines = [json.dumps({**record, "split": split}) for split in ("train", "validation", "test")]
    plain = [json.dumps({"prompt": "a", "response": "c", "split": split}) for split in ("train", "validation", "test")]
    config = recipe(tmp_path, demonstrations=[lines[0], *plain])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CONVERSATION}))
    (tmp_path / "tokenizer.json").write_text(json.dumps(pairs()))
    prepare(
        changed(config, tokenizer__path=str(tmp_path), data__template="chat", data__max_prompt=20), tmp_path / "run"
    )


@fault(
    "a text with a character that the tokenizer would leave out",
    "PATH:N: response: expected characters that the tokenizer has tokens for, found '\\x04'",
)
def test_lost_characters(tmp_path):
    described = pairs()
    del described["model"]["vocab"]["\u0104"]  # the symbol of the byte 4
    load(tmp_path, described, "tokenizer.json")
    record = {"prompt": "a", "response": "c", "split": "train"}
    lines = [json.dumps({**record, "response": "b\x04c"})]
    lines += [json.dumps({**record, "split": split}) for split in ("train", "validation", "test")]
    config = recipe(tmp_path, demonstrations=lines)
    prepare(changed(config, tokenizer__path=str(tmp_path / "tokenizer.json")), tmp_path / "run")
