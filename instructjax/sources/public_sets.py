"""The public sets: who made them, under which license, where their files are, and what their fields are called.

A digest is "sha256:..." or the id that Git gives to a file, "git:...". Both were read from the publisher's repository,
at the commit in the URL. "" is not pinned: no copy could be read when this table was written. Then the digest of the
first use is noted, and compared later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicSet:
    """A public set.

    Attributes:
      citation: the authors, and where they describe it.
      license: of the data, as its publisher states it.
      url: of its folder, with a slash at the end.
      files: the digest of each file, by its name below the URL.
      fields: for each kind of records that it gives, the names of its fields; see `shapes.parse_names`.
    """

    citation: str
    license: str
    url: str
    files: Mapping[str, str]
    fields: Mapping[str, str]


_HUGGING_FACE = "https://huggingface.co/datasets"
_RAW = "https://raw.githubusercontent.com"
_BLOBS = "https://openaipublic.blob.core.windows.net"
_SUBREDDITS = (
    "askacademia askanthropology askbaking askcarguys askculinary askdocs askengineers askhistorians askhr "
    "askphilosophy askphysics askscience asksciencefiction asksocialscience askvet changemyview explainlikeimfive "
    "legaladvice"
).split()
_TLDR_PROMPT = "SUBREDDIT: r/{info.subreddit}\n\nTITLE: {info.title}\n\nPOST: {info.post}\n\nTL;DR:"

SETS: Mapping[str, PublicSet] = {
    "hh": PublicSet(
        citation="Bai et al. 2022, arXiv:2204.05862",
        license="MIT",
        url="https://github.com/anthropics/hh-rlhf/raw/354e5c3cb8960630860dd5774a6ac2a58313bf4d/",
        files={
            "harmless-base/test.jsonl.gz": "git:a616e6a27660ded23c5ce0e585a3e4cf0d761f0e",
            "harmless-base/train.jsonl.gz": "git:df7c90b1bbd6093bda9c996e8aab9a46fa557dcf",
            "helpful-base/test.jsonl.gz": "sha256:8be3fc1a13b27901631696f2be6f184c799f1baeaf145f53ac5db24960adc37b",
            "helpful-base/train.jsonl.gz": "sha256:518a5bf288456fc9f3b7c980c54116fba0c52f274d3f4d344675d83e4058f6f4",
            "helpful-online/test.jsonl.gz": "sha256:39a475cc7e0df972902f8e3a0972726fce826ac65369bda8c671de4330c60a10",
            "helpful-online/train.jsonl.gz": "sha256:0994d18b82083f5c084ce04071b683958a724df8c7215ab1d851986642d36a2a",
            "helpful-rejection-sampled/test.jsonl.gz": "sha256:"
            "abc35dbc56015db1dae0faa484514ccbc3eee0133bfcd557fc69250619b028bb",
            "helpful-rejection-sampled/train.jsonl.gz": "sha256:"
            "0cea2d2ab2187624ec1314e8cc6fb579f0fa987b3a33e8102b7556ed4d255f64",
        },
        fields={"rankings": "", "prompts": ""},
    ),
    "tldr": PublicSet(
        citation="Stiennon et al. 2020, arXiv:2009.01325",
        license="none stated for the data; the posts are from Reddit",
        url=f"{_BLOBS}/summarize-from-feedback/dataset/comparisons/",
        files={f"batch{number}.json": "" for number in (*range(3, 21), 22)},
        fields={
            "rankings": f"prompt={_TLDR_PROMPT}, responses=summaries.*.text, labeler=worker, original_split=split",
            "prompts": f"prompt={_TLDR_PROMPT}, original_split=split",
        },
    ),
    "webgpt": PublicSet(
        citation="Nakano et al. 2021, arXiv:2112.09332",
        license="none stated",
        url=f"{_HUGGING_FACE}/openai/webgpt_comparisons/resolve/refs%2Fconvert%2Fparquet/default/train/",
        files={"0000.parquet": ""},
        fields={
            "rankings": "prompt=question.full_text, responses=answer_0+answer_1, scores=score_0+score_1",
            "prompts": "prompt=question.full_text",
        },
    ),
    "shp": PublicSet(
        citation="Ethayarajh et al. 2022, PMLR 162",
        license="none stated; the posts are from Reddit, under the terms of its API",
        url=f"{_HUGGING_FACE}/stanfordnlp/SHP/resolve/main/",
        files={f"{name}/{split}.json": "" for name in _SUBREDDITS for split in ("train", "validation", "test")},
        fields={
            "rankings": "prompt=history, responses=human_ref_A+human_ref_B, scores=score_A+score_B",
            "prompts": "prompt=history",
        },
    ),
    "oasst1": PublicSet(
        citation="Koepf et al. 2023, arXiv:2304.07327",
        license="Apache-2.0",
        url=f"{_HUGGING_FACE}/OpenAssistant/oasst1/resolve/main/",
        files={"2023-04-12_oasst_ready.trees.jsonl.gz": ""},
        fields={"rankings": "", "demonstrations": "", "prompts": "", "text": ""},
    ),
    "dolly": PublicSet(
        citation="Conover et al. 2023, databricks-dolly-15k",
        license="CC BY-SA 3.0",
        url=f"{_HUGGING_FACE}/databricks/databricks-dolly-15k/resolve/main/",
        files={"databricks-dolly-15k.jsonl": ""},
        fields={"demonstrations": "use_case=category", "prompts": "use_case=category"},
    ),
    "alpaca": PublicSet(
        citation="Taori et al. 2023, Stanford Alpaca",
        license="CC BY-NC 4.0",
        url=f"{_RAW}/tatsu-lab/stanford_alpaca/761dc5bfbdeeffa89b8bff5d038781a4055f796a/",
        files={"alpaca_data.json": "git:3779ddbc040543ab1834ef216c983d6fcc06cc9a"},
        fields={"demonstrations": "", "prompts": ""},
    ),
    "ultrafeedback": PublicSet(
        citation="Cui et al. 2023, arXiv:2310.01377",
        license="MIT",
        url=f"{_HUGGING_FACE}/openbmb/UltraFeedback/resolve/main/",
        files={f"{name}.jsonl": "" for name in "evol_instruct false_qa flan sharegpt truthful_qa ultrachat".split()},
        fields={
            "rankings": "prompt=instruction, responses=completions.*.response, scores=completions.*.overall_score",
            "prompts": "prompt=instruction",
        },
    ),
    "helpsteer": PublicSet(
        citation="Wang et al. 2023, arXiv:2311.09528",
        license="CC BY 4.0",
        url=f"{_HUGGING_FACE}/nvidia/HelpSteer/resolve/main/",
        files={"train.jsonl.gz": "", "validation.jsonl.gz": ""},
        fields={"rankings": "score=helpfulness", "prompts": ""},
    ),
    "e2e": PublicSet(
        citation="Novikova et al. 2017, arXiv:1706.09254",
        license="CC BY-SA 4.0",
        url=f"{_RAW}/tuetschek/e2e-dataset/ab0d967dd5729ce455ef14ba9ffafc456a335264/",
        files={
            "devset.csv": "git:c45950a0771c769d787a33fdf56439cb890005d7",
            "testset_w_refs.csv": "git:86733864c96dc18cbaa5f18042356296ef679302",
            "trainset.csv": "git:fa3a5e1124d2aa0d768881e38f8ee73e63d5880d",
        },
        fields={"demonstrations": "prompt=mr, response=ref", "prompts": "prompt=mr"},
    ),
}
