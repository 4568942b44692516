"""Tasks in the formats of their releases: small files, prompts, and metrics computed by hand or by the packages."""

import csv
import gzip
import html
import json

import numpy as np
import pytest
import sacrebleu
from etils import epath
from rouge_score import rouge_scorer

from instructjax.errors import DataError, RecordError
from instructjax.evaluation.tasks import drop, quac, results, summaries, wmt15, wsc
from instructjax.evaluation.tasks.registry import TASKS
from instructjax.evaluation.tasks.task import Output, make_prompts
from tests.local_data import ABSENT, DATA

NO_DATE = {"day": "", "month": "", "year": ""}


def write(path, found):
    text = json.dumps(found) if isinstance(found, dict) else "".join(json.dumps(line) + "\n" for line in found)
    path.write_text(text)
    return epath.Path(path)


def answers(*texts):
    return [Output(response=text) for text in texts]


def drop_answer(number="", spans=(), date=NO_DATE):
    return {"number": number, "spans": list(spans), "date": date}


def drop_file(folder):
    """Returns a file of two passages, with a number, several spans, a date, and an empty second answer."""
    pairs = [
        {"question": "How many?", "answer": drop_answer("3"), "validated_answers": [drop_answer(spans=["three"])]},
        {"question": "Who?", "answer": drop_answer(spans=["red owl", "fox"]), "validated_answers": [drop_answer()]},
    ]
    date = {"day": "", "month": "May", "year": "1904"}
    return write(
        folder / "drop.json",
        {
            "nfl_1": {"passage": "Three owls.", "qa_pairs": pairs},
            "nfl_2": {"passage": "In May.", "qa_pairs": [{"question": "When?", "answer": drop_answer(date=date)}]},
        },
    )


def test_drop(tmp_path):
    examples = drop.read(drop_file(tmp_path))
    assert examples[0].text == "Passage: Three owls.\nQuestion: How many?\nAnswer:" and examples[0].solution == " 3"
    assert [example.references for example in examples] == [("3", "three"), ("red owl\nfox",), ("May 1904",)]
    assert examples[1].solution == " red owl, fox"
    found = TASKS["drop"].measure(examples, answers("3.0", "fox", "in May 1904"), {})
    assert found["f1"].tolist() == [100, 50, 80]  # one of two spans; 2 of 3 words and 2 of 2
    assert found["exact"].tolist() == [100, 0, 0]


def test_a_solved_passage_of_drop_is_not_asked(tmp_path):
    prompts, asked = make_prompts(TASKS["drop"], drop.read(drop_file(tmp_path)), "", 1)
    (shown,) = {"nfl_1", "nfl_2"} - {example.where.split(": ")[1] for example in asked}
    solved = "Who?\nAnswer: red owl, fox" if shown == "nfl_1" else "When?\nAnswer: May 1904"
    assert all(f"{solved}\n\nPassage: " in prompt for prompt in prompts)


def quac_file(folder):
    """Returns a file of two dialogues with two questions each."""

    def question(number, *texts):
        return {"id": f"C_q#{number}", "question": f"Q{number}?", "answers": [{"text": text} for text in texts]}

    one = {"context": "A red owl. CANNOTANSWER", "id": "C_1", "qas": [question(0, "red owl", "red")]}
    one["qas"].append(question(1, "CANNOTANSWER", "CANNOTANSWER", "blue"))
    other = {"context": "A fox. CANNOTANSWER", "id": "C_2", "qas": [question(2, "blue sky", "green")]}
    other["qas"].append(question(3, "fox"))
    sections = [{"title": "Owl", "section_title": "Color", "paragraphs": [paragraph]} for paragraph in (one, other)]
    return write(folder / "quac.json", {"data": sections})


def test_quac(tmp_path):
    examples = quac.read(quac_file(tmp_path))
    assert examples[1].text == ("TITLE: Owl - Color\n\nPARAGRAPH: A red owl.\n\nQ: Q0?\n\nA: red owl\n\nQ: Q1?\n\nA:")
    assert examples[1].solution == " I don't know."
    outputs = answers("red", "I don't know", "blue sky", "")
    (f1, of_questions, of_dialogues) = results.compute(TASKS["quac"], "", 0, examples, outputs, {})
    # The references of the first question: 2/3 alike. Leaving either out, "red" has an F1 of 1 and 2/3. People do not
    # agree about the third question, so it does not count.
    assert f1.value == pytest.approx(100 * np.mean([5 / 6, 1, 0]))
    assert of_questions.value == pytest.approx(100 * 2 / 3) and of_dialogues.value == 50
    assert [f1.metric, of_questions.metric, of_dialogues.metric] == ["f1", "HEQ-Q", "HEQ-D"]
    assert f1.paper["gpt-175b"] == 42.55 and all(result.stderr > 0 for result in (f1, of_questions, of_dialogues))


def test_quac_without_agreement_has_no_score(tmp_path):
    example = quac.read(quac_file(tmp_path))[2]
    with pytest.raises(DataError, match=r"quac: expected a question on which people agree to 0\.4 F1, found none"):
        quac.measure([example], answers("blue"), {})


def wsc_line(label, noun, **changed):
    target = {"span1_text": noun, "span1_index": 0, "span2_text": "she", "span2_index": 5, **changed}
    return {"text": 'Jane gave Joan candy because "she was hungry.', "target": target, "label": label}


def test_wsc(tmp_path):
    path = write(tmp_path / "wsc.jsonl", [wsc_line(True, "Joan"), wsc_line(False, "Jane")])
    examples = wsc.read(path)
    assert examples[0].text == (
        'Passage: Jane gave Joan candy because "*she* was hungry.\n'
        'Question: In the passage above, what does the pronoun "*she*" refer to?\nAnswer:'
    )
    assert [example.solution for example in examples] == [" Joan", ""]

    def accuracy(*texts):
        return TASKS["wsc"].measure(examples, answers(*texts), {})["accuracy"].tolist()

    assert accuracy("Joan.", "Joan.") == [1, 1]
    assert accuracy("It is Joan", "the jane") == [1, 0]
    assert accuracy("J", "") == [1, 1]  # contained in the noun; an empty answer is "false"
    assert accuracy("", "candy") == [0, 1]


def test_a_place_that_is_not_the_pronouns_is_refused(tmp_path):
    path = write(tmp_path / "wsc.jsonl", [wsc_line(True, "Joan", span2_index=9)])
    with pytest.raises(RecordError, match="wsc.jsonl:1: target: span2_index: expected the number of the word 'she'"):
        wsc.read(path)


def test_rte(tmp_path):
    lines = [{"premise": "It is ready.", "hypothesis": "Maglev is used.", "label": "not_entailment"}]
    (example,) = TASKS["rte"].read(write(tmp_path / "rte.jsonl", lines))
    assert example.text == (
        "Passage: It is ready.\nQuestion: From this passage can one reasonably conclude that Maglev is used?\nAnswer:"
    )
    assert (example.choices, example.answer, example.solution) == ((" Yes", " No"), 1, " No")


def segments_file(path, texts):
    lines = [f'<seg id="{i}">{html.escape(text, quote=False)}</seg>' for i, text in enumerate(texts, start=1)]
    middle = len(lines) // 2
    documents = ['<doc sysid="ref" docid="a" origlang="fr">', *lines[:middle], "</doc>"]
    documents += ['<doc sysid="ref" docid="b" origlang="fr">', *lines[middle:], "</doc>"]
    path.write_text("\n".join(['<srcset setid="t" srclang="any">', *documents, "</srcset>"]))


def translations(folder, french, english):
    segments_file(folder / "t-src.fr.sgm", french)
    segments_file(folder / "t-ref.en.sgm", english)
    return wmt15.read(epath.Path(folder / "t-src.fr.sgm"))


FRENCH, ENGLISH = ["Un & deux", "Le chat dort", "Bonjour", "Merci"], ["One & two", "The cat sleeps", "Hello", "Thanks"]


def test_wmt15(tmp_path):
    examples = translations(tmp_path, FRENCH, ENGLISH)
    assert examples[0].text == "French: Un & deux\nEnglish:" and examples[0].solution == " One & two"
    assert [example.group for example in examples] == ["a", "a", "b", "b"]
    said = ["One & two", "The cat sleeps well", "Hello you", "Thank you"]
    (result,) = results.compute(TASKS["wmt15_fr_en"], "", 0, examples, answers(*said), {})
    assert result.value == pytest.approx(sacrebleu.corpus_bleu(said, [ENGLISH]).score)
    assert result.stderr > 0 and result.paper["gpt-175b"] == 38.92


def test_translations_of_other_sentences_are_refused(tmp_path):
    with pytest.raises(RecordError, match="t-ref.en.sgm: expected 4 segments, as in t-src.fr.sgm, found 3"):
        translations(tmp_path, FRENCH, ENGLISH[:3])


@pytest.mark.skipif(not (DATA / "instructgpt_samples").exists(), reason=ABSENT)
def test_prompts_of_wmt15_are_those_of_the_released_samples(tmp_path):
    with gzip.open(
        DATA / "instructgpt_samples" / "fr_to_en_samples.csv.gz", "rt", newline="", encoding="utf-8"
    ) as file:
        released = {row["context"]: row["ref_text"] for row in csv.DictReader(file)}
    french = [context.removeprefix("French: ").removesuffix("\nEnglish:") for context in released]
    examples = translations(tmp_path, french, list(released.values()))
    assert [example.text for example in examples] == list(released) and len(released) == 100


@pytest.mark.parametrize(("task", "fields"), [("cnn_dm", ("article", "highlights")), ("tldr", ("content", "summary"))])
def test_summaries(tmp_path, task, fields):
    lines = [dict(zip(fields, (f"News {i} .\n", "An owl .\nA fox ."), strict=True)) for i in range(2)]
    examples = TASKS[task].read(write(tmp_path / "s.jsonl", lines))
    assert examples[0].text == "News 0 .\n\nTL;DR:" and examples[0].solution == " An owl . A fox ."
    outputs = answers("An owl and a fox", "A cat")
    (result,) = results.compute(TASKS[task], "", 0, examples, outputs, {})
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    expected = [scorer.score("An owl .\nA fox .", output.response)["rougeL"].fmeasure for output in outputs]
    assert result.value == pytest.approx(np.mean(expected))
    assert result.paper["gpt-175b"] == 0.196  # of a row without a prompt
    assert not results.compute(TASKS[task], "", 1, examples, outputs, {})[0].paper
    assert summaries.measure(examples, outputs, {})["ROUGE-L"].tolist() == pytest.approx(expected)
