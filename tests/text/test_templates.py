"""Chat templates and the separator: conversations to tokens."""

import copy
import dataclasses
import json
import pickle

import jinja2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.conversation import Conversation, Message, as_prompt, messages_of, to_json
from instructjax.data import layouts, selection
from instructjax.data.layouts import Layout
from instructjax.errors import ConfigError, DataError
from instructjax.records import Demonstration, Prompt, Ranking, Text
from instructjax.text import export
from instructjax.text.huggingface import HuggingFaceTokenizer
from instructjax.text.special_tokens import END_OF_TEXT
from tests.recipes import LINES
from tests.text.test_tokenizer_json import spaced

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra huggingface")

TURNS = ["<|im_start|>", "<|im_end|>", "<|eot|>", "<s>"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Llama 3's, which trims; as Gemma's, which names roles otherwise and refuses others.
TRIMMED = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '<s>\n\n' + m['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<s>\n\n' }}{% endif %}"
)
STRICT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)


def learned(template, **settings):
    pairs = tokenizers.ByteLevelBPETokenizer()
    special = [END_OF_TEXT, *TURNS]
    pairs.train_from_iterator(
        [*LINES, "user\n", "assistant\n\n"], vocab_size=310, special_tokens=special, show_progress=False
    )
    content = pairs.to_str().encode()
    given = {"eos": ["<|im_end|>"], "bos": "<s>", "chat_template": template, **settings}
    return tokenizers.Tokenizer.from_str(content.decode()), HuggingFaceTokenizer.from_bytes(content, "FILE", given)


TOKENIZERS = {template: learned(template) for template in (CHATML, TRIMMED, STRICT)}
RENDER = {template: jinja2.Template(template).render for template in TOKENIZERS}
PLAIN, CHAT = TOKENIZERS[CHATML]


def layout_of(template, **kwargs):
    return Layout(TOKENIZERS[template][1], "", 500, 60, kind="chat", **kwargs)


def talk(*contents):
    """Returns a conversation in which the user begins."""
    return as_prompt([Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)])


# In the middle of a conversation with a word at the beginning, tokens are the same together and apart.
contents = st.lists(st.sampled_from(["the", " fox", "\n", "  ", "é", "狐", "<|", "12", "'s"]), max_size=6).map(
    lambda parts: "".join(["a", *parts, "b"])
)


@pytest.mark.parametrize("template", TOKENIZERS, ids=["chatml", "trimmed", "strict"])
@given(st.lists(contents, min_size=1, max_size=5).filter(lambda found: len(found) % 2))
def test_tokens_are_those_of_the_rendered_text(template, found):
    plain, _ = TOKENIZERS[template]
    prompt = talk(*found)
    messages = [message._asdict() for message in messages_of(prompt)]
    rendered = RENDER[template](messages=messages, add_generation_prompt=True, bos_token="<s>", raise_exception=None)
    assert layout_of(template).encode_prompt(prompt) == plain.encode(rendered).ids


@given(st.lists(st.text(max_size=4) | st.sampled_from([*TURNS, END_OF_TEXT, "<|im_", "\ufdd0"])).map("".join))
def test_special_tokens_in_messages_are_text(text):
    start, end = PLAIN.token_to_id("<|im_start|>"), PLAIN.token_to_id("<|im_end|>")
    ids = layout_of(CHATML).encode_prompt(talk(text, "a", "b"))
    assert [i for i in ids if i in (start, end)] == [start, end] * 3 + [start]
    assert not {PLAIN.token_to_id(token) for token in ("<|eot|>", "<s>", END_OF_TEXT)} & set(ids)
    assert f"user\n{text}" in PLAIN.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_tokenizers_that_put_a_space_before_a_text(scheme):
    template = "{{ bos_token }}{% for m in messages %}{{ '[INST]' + m.content + '[/INST]' if m.role == 'user' }}"
    template += "{{ ' ' + m.content + eos_token if m.role == 'assistant' }}{% endfor %}"
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    content = spaced(pre_tokenizer=metaspace)
    given = {"eos": ["</s>"], "bos": "<s>", "chat_template": template}
    layout = Layout(HuggingFaceTokenizer.from_bytes(content, "FILE", given), "", 99, 9, kind="chat")
    expected = tokenizers.Tokenizer.from_str(content.decode()).encode(
        "<s>[INST]the fox[/INST] the</s>[INST] fox[/INST]", add_special_tokens=False
    )
    assert layout.encode_prompt(talk("the fox", "the", " fox")) == expected.ids
    assert layout.eos_ids == (2,)


def test_which_token_ends_an_answer():
    ids = {name: PLAIN.token_to_id(name) for name in (*TURNS, END_OF_TEXT)}
    assert layout_of(CHATML).eos_ids == (ids["<|im_end|>"], ids[END_OF_TEXT])
    assert layout_of(TRIMMED).eos_ids == (ids["<|eot|>"], ids["<|im_end|>"])
    assert layout_of(CHATML).encode_response("a") == [*CHAT.encode("a"), ids["<|im_end|>"]]
    assert layout_of(CHATML).decode([*CHAT.encode("a b"), ids[END_OF_TEXT]]) == "a b"
    assert Layout(CHAT, "\n", 9, 9).encode_response("a") == [*CHAT.encode("a"), ids[END_OF_TEXT]]


def test_earlier_answers_are_told_apart():
    found = layout_of(CHATML).tokenize_prompt(talk("the fox", "3 owls", "a", "red", "b"))
    answers = [i for i, is_answer in zip(*found, strict=True) if is_answer]
    end = PLAIN.token_to_id("<|im_end|>")
    assert answers == [*CHAT.encode("3 owls"), end, *CHAT.encode("red"), end]
    whole = found.tokens
    assert layout_of(CHATML, cut_prompts=True).encode_prompt(talk("a")) == layout_of(CHATML).encode_prompt(talk("a"))
    short = Layout(CHAT, "", 7, 60, kind="chat", cut_prompts=True).tokenize_prompt(talk("the fox", "3 owls", "a"))
    assert len(short.tokens) == len(short.answered) == 7 < len(whole)


@pytest.mark.parametrize("every", [False, True])
def test_demonstrations_teach_the_last_answer_or_every_one(every):
    layout = layout_of(CHATML, every_answer=every)
    record = Demonstration(prompt=talk("the", "fox", "by"), response="night")
    row = layouts.demonstration_row([record, record], layout, prompt_weight=0.25)
    tokens, answered = layout.tokenize_prompt(record.prompt)
    response = layout.encode_response("night")
    weights = np.where(np.array(answered) & every, 1.0, 0.25)
    weights[0] = 0
    np.testing.assert_array_equal(row.weights[: len(tokens)], weights)
    np.testing.assert_array_equal(row.weights[len(tokens) : len(tokens) + len(response)], 1.0)
    size = len(tokens) + len(response)
    np.testing.assert_array_equal(row.weights[size : 2 * size], row.weights[:size])
    np.testing.assert_array_equal(row.tokens[:size], [*tokens, *response])


def test_the_first_token_of_a_prompt_that_is_cut_in_an_answer_is_not_learned():
    layout = layout_of(CHATML, every_answer=True, cut_prompts=True)
    record = Demonstration(prompt=talk("the fox", "3 owls and a red night", "a"), response="b")
    tokens, answered = layout.tokenize_prompt(record.prompt)
    layout = dataclasses.replace(layout, max_prompt=len(tokens) - answered.index(True) - 1)
    assert layout.tokenize_prompt(record.prompt).answered[0]
    row = layouts.demonstration_row([record, record], layout)
    assert not row.weights[row.positions == 0].any()
    assert row.weights[row.positions == 1][:2].tolist() == [1, 1]


def test_earlier_answers_need_a_token_at_their_end():
    words = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    tokenizer = learned(words)[1]
    assert Layout(tokenizer, "", 500, 60, kind="chat").template.eos_id == tokenizer.eos_id
    message = "^data.every_answer: expected a chat template that writes a special token after every answer"
    with pytest.raises(ConfigError, match=message):
        _ = Layout(tokenizer, "", 500, 60, kind="chat", every_answer=True).template


def test_a_prompt_that_a_template_refuses_is_a_fault_of_its_record():
    layout, two = layout_of(STRICT), as_prompt([Message("user", "a"), Message("user", "b")])
    with pytest.raises(
        DataError, match="^data.jsonl:7: prompt: expected messages .* user, user .roles must alternate.$"
    ):
        layout.encode_prompt(two, "data.jsonl:7")
    with pytest.raises(DataError, match="prompt: expected at most 3 tokens .data.max_prompt., found"):
        Layout(CHAT, "", 3, 60, kind="chat").encode_prompt("a")


def test_records_that_cannot_be_tokenized_are_left_out_with_a_reason():
    two = as_prompt([Message("user", "a"), Message("user", "b")])
    described = json.loads(CHAT.to_bytes())
    del described["model"]["vocab"]["\u0104"]  # the symbol of the byte 4
    lossy = Layout(HuggingFaceTokenizer.from_bytes(json.dumps(described).encode()), "\n", 99, 99)
    kept = Demonstration(prompt="a", response="b")
    ranking = Ranking(prompt="a", responses=("b", "c\x04"), scores=(1.0, 0.0), where="r.jsonl:2")
    for record, layout, reason, fault in [
        (
            Prompt(prompt=two, where="p.jsonl:1"),
            layout_of(STRICT),
            selection.REFUSED,
            "p.jsonl:1: prompt: expected mess",
        ),
        (ranking, lossy, selection.LOST, "r.jsonl:2: responses[1]: expected characters that the tokenizer has tokens"),
        (Text(text="\x04", where="t"), lossy, selection.LOST, "t: text: expected characters that the tokenizer has"),
    ]:
        choice, _, _ = selection.choose_by_length(record, layout, 9)
        assert (choice.record, choice.reason) == (None, reason) and choice.fault.startswith(fault)
        assert selection.choose_by_length(kept, layout, 9)[0].record == kept


def test_the_separator_writes_the_transcript():
    layout = Layout(CHAT, "\n", 500, 60)
    found = layout.tokenize_prompt(talk("the fox", "red", "b"))
    assert found.tokens == CHAT.encode("Human: the fox\n\nAssistant: red\n\nHuman: b\n\nAssistant:\n")
    assert not any(found.answered)


@pytest.mark.parametrize("separator", ["\n", '\n\n"Answer":\t', ""])
@pytest.mark.parametrize("roles", ["user", "system user", "user assistant user"])
def test_the_separator_has_an_equal_chat_template(separator, roles):
    messages = [Message(role, f"{role} {{{{ x }}}}\n") for role in roles.split()]
    layout = Layout(CHAT, separator, max_prompt=99, max_response=9)
    written = jinja2.Template(layout.template.source, keep_trailing_newline=True).render(
        messages=[message._asdict() for message in messages], bos_token=CHAT.names["bos_token"]
    )
    bos = CHAT.names["bos_token"] if CHAT.bos else ""
    assert written == f"{bos}{as_prompt(messages)}{separator}"


def test_bos_begins_prompts_and_documents():
    described = json.loads(CHAT.without_settings())
    bos = PLAIN.token_to_id("<s>")
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    described["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [bos], "tokens": ["<s>"]}},
    }
    found = HuggingFaceTokenizer.from_bytes(json.dumps(described).encode())
    assert found.bos == (bos,) and found.encode("a") == CHAT.encode("a")
    assert Layout(found, "\n", 9, 9).encode_prompt("a") == [bos, *CHAT.encode("a\n")]
    assert layouts.document_tokens(Text(text="a"), found).tolist() == [bos, *CHAT.encode("a"), found.eos_id]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "",
            "data.template: expected a tokenizer with a chat template, found one without; set data.template=separator",
        ),
        ("{% for", "data.template: expected a jinja template, found "),
        ("{{ 1 // 0 }}", "data.template: expected messages that the chat template can write, found those of user"),
        ("{{ messages.__class__.__mro__ }}", "data.template: expected messages that the chat template can write"),
        ("{{ messages.append(1) }}", "data.template: expected messages that the chat template can write"),
        (
            CHATML.replace("add_generation_prompt", "false"),
            "data.template: expected a chat template that opens an answer",
        ),
        ("{{ messages | length }}", "data.template: expected a chat template that opens an answer as it begins one"),
    ],
)
def test_templates_that_cannot_be_used(template, message):
    tokenizer = learned(template)[1]
    with pytest.raises(ConfigError) as error:
        Layout(tokenizer, "", 9, 9, kind="chat").encode_prompt("a")
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_template_that_rewrites_earlier_messages_is_a_fault_of_the_record():
    found = Layout(learned("{{ 'x' if messages | length > 2 }}" + CHATML)[1], "", 99, 9, kind="chat")
    assert len(found.encode_prompt("a")) > 5
    with pytest.raises(DataError, match="prompt: expected messages before which the chat template writes the same"):
        found.encode_prompt(talk("a", "b", "c"))


@pytest.mark.parity
@pytest.mark.parametrize("template", TOKENIZERS, ids=["chatml", "trimmed", "strict"])
def test_an_exported_tokenizer_writes_the_same_chats(tmp_path, template):
    transformers = pytest.importorskip("transformers", reason="needs the extra parity")
    for name, content in export.pretrained_files(TOKENIZERS[template][1], 64).items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    prompt = talk("the fox", "owl 3", "by night")
    messages = [message._asdict() for message in messages_of(prompt)]
    text = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    found = layout_of(template).encode_prompt(prompt)
    assert found == theirs(text, add_special_tokens=False)["input_ids"]
    assert theirs.decode(found) == text


class TestConversation:
    def test_it_is_its_transcript(self):
        found = talk("a", "b", "c")
        assert isinstance(found, Conversation) and found == "Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
        assert messages_of(found) == (("user", "a"), ("assistant", "b"), ("user", "c"))
        for copied in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
            assert messages_of(copied) == messages_of(found) and copied == found
        assert to_json(found)[1] == {"role": "assistant", "content": "b"}

    def test_one_message_of_the_user_is_a_text(self):
        assert type(talk("a")) is str and messages_of("a") == (("user", "a"),) and to_json("a") == "a"
        assert isinstance(as_prompt([Message("system", "a")]), Conversation)
