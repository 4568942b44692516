"""Serves a policy with llama.cpp and compares it with ours: answers, distributions, bytes, speed and win rates.

    pip install -c constraints.txt -e '.[serve]'
    python experiments/benchmarks/serving.py --workdir=runs/sandbox --stage=ppo_ptx --output=served.json

For each type of weights the policy is exported to a GGUF file, and llama.cpp's server is started on it. Everything else
goes over HTTP: the chat template, the tokenizer, greedy answers, the log-probabilities of whole vocabularies after each
token of our sampled answers, and samples at temperature 1 that the source's labelers compare with ours.
"""

import contextlib
import functools
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

import jax
import numpy as np
from absl import flags

from instructjax import files
from instructjax.conversation import messages_of
from instructjax.errors import ConfigError
from instructjax.evaluation.intervals import clustered_mean
from instructjax.models import gguf
from instructjax.models.config import TransformerConfig
from instructjax.models.transformer import LanguageModel
from instructjax.records import Prompt
from instructjax.rollout import samplers
from instructjax.sources.source import Answers
from instructjax.stages import exported, rewards
from instructjax.training import parallel

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # as for the scripts of experiments/

import command_line

from benchmarks.tables import markdown, number

_STAGE = flags.DEFINE_string("stage", "ppo_ptx", "The stage whose policy is served.")
_DTYPES = flags.DEFINE_list("dtypes", ["f32", "f16", "q8_0", "q5_0", "q4_0"], f"Among {', '.join(gguf.DTYPES)}.")
_COMPARED = flags.DEFINE_integer(
    "compared", 50, "Test prompts whose answers are compared token by token.", lower_bound=2
)
_JUDGED = flags.DEFINE_integer("judged", 400, "Test prompts whose answers are judged; 0 for none.", lower_bound=0)
_THREADS = flags.DEFINE_integer("threads", 2, "Threads of the server.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "The JSON file to write, next to the printed table.")


# llama.cpp's server as a program: the wheel of xllamacpp has it as a library only. Ends with its standard input.
SERVER = """
import sys, xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, threads = sys.argv[1], int(sys.argv[2])
settings.n_parallel, settings.cpuparams.n_threads, settings.cpuparams_batch.n_threads = 1, threads, threads
settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # rounds queries to float16
settings.warmup, settings.verbosity = False, -1
server = xllamacpp.Server(settings)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def serve(path, threads=1):
    """Starts llama.cpp's server on a GGUF file, with keys and values in float32; yields `ask`, bound to its address.

    Raises:
      ConfigError: the server does not start.
    """
    command = [sys.executable, "-c", SERVER, str(path), str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        address = server.stdout.readline().strip()
        try:
            if not address:
                raise ConfigError(f"{path}: expected llama.cpp's server to start; pip install 'instructjax[serve]'")
            yield functools.partial(ask, address)
        finally:
            server.kill()


def ask(address, place, **body):
    """Returns the JSON answer of a server to a JSON request."""
    request = urllib.request.Request(
        f"{address}{place}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def prompt_tokens(asked, prompt):
    """Returns the tokens of a prompt, by the server's chat template and tokenizer."""
    messages = [message._asdict() for message in messages_of(prompt)]
    text = asked("/apply-template", messages=messages)["prompt"]
    return asked("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]


def complete(asked, tokens, max_tokens, temperature=0.0, seed=0):
    """Returns (sampled tokens with EOS, seconds that it took to decode them)."""
    found = asked(
        "/completion",
        prompt=tokens,
        n_predict=max_tokens,
        samplers=["temperature"] if temperature else ["top_k"],
        temperature=temperature,
        top_k=1,
        seed=seed,
        return_tokens=True,
    )
    return found["tokens"], found["timings"]["predicted_ms"] / 1000


def served_log_probs(asked, tokens, start, vocab_size, end):
    """Returns float64[n - start, V]: the server's log-probabilities of tokens [start:], each after those before it.

    The server gives them only with a token that it can print. So it is made to take `end`, whose bias comes after them.
    """
    rows = np.full((len(tokens) - start, vocab_size), -np.inf)
    for place in range(start, len(tokens)):
        found = asked(
            "/completion",
            prompt=tokens[:place],
            n_predict=1,
            n_probs=vocab_size,
            temperature=0.0,
            logit_bias=[[end, 1e4]],
        )
        for token in found["completion_probabilities"][0]["top_logprobs"]:
            rows[place - start, token["id"]] = token["logprob"]
    return rows


def our_log_probs(config: TransformerConfig, params, tokens, start):
    """Returns float64[n - start, V]: the same by our model, in float32."""
    row = np.zeros((1, config.max_length), np.int32)
    row[0, : len(tokens)] = tokens
    inside = np.arange(config.max_length)[None] < len(tokens)
    places = np.arange(config.max_length, dtype=np.int32)[None]
    logits = _logits(LanguageModel(config))(params, row, inside.astype(np.int32), places)
    return np.asarray(jax.nn.log_softmax(logits[0, start - 1 : len(tokens) - 1]), np.float64)


@functools.cache
def _logits(model):
    return jax.jit(lambda params, *row: model.apply({"params": params}, *row)[0])


def compare(asked, policy, layout, prompts):
    """Compares a served policy with ours on prompts.

    Returns:
      "prompts" and "answers", the shares of prompts with equal tokens and with equal greedy answers; of the tokens of
      our samples at temperature 1, "kl" (ours to the server's, nats a token), "loss" (ours, nats a token), and
      "loss_difference" (the server's minus ours); "intervals" of the last two, clustered by prompt; "seconds_per_token"
      of greedy decoding.
    """
    config = policy.model.config
    greedy, sampled = (responses(policy, layout, prompts, temperature) for temperature in (0.0, 1.0))
    equal, rows, seconds, count = [], [], 0.0, 0
    for prompt, answer, sample in zip(prompts, greedy, sampled, strict=True):
        tokens = layout.encode_prompt(prompt)
        found, took = complete(asked, tokens, layout.max_response)
        seconds, count = seconds + took, count + len(found)
        equal.append((prompt_tokens(asked, prompt) == tokens, found == answer))
        whole = [*tokens, *sample]
        theirs = served_log_probs(asked, whole, len(tokens), config.vocab_size, layout.eos_ids[0])
        ours = our_log_probs(config, policy.params, whole, len(tokens))
        places = np.arange(len(sample)), np.array(sample)
        rows += [
            (prompt, kl, loss, difference)
            for kl, loss, difference in zip(
                np.sum(np.exp(ours) * (ours - theirs), axis=1),
                -ours[places],
                ours[places] - theirs[places],
                strict=True,
            )
        ]
    by, kl, loss, difference = zip(*rows, strict=True)
    same_prompts, same_answers = np.mean(equal, axis=0)
    estimates = {name: clustered_mean(values, by) for name, values in {"kl": kl, "loss_difference": difference}.items()}
    return {
        "prompts": float(same_prompts),
        "answers": float(same_answers),
        "loss": float(np.mean(loss)),
        **{name: estimate.mean for name, estimate in estimates.items()},
        "intervals": {name: estimate.to_dict() for name, estimate in estimates.items()},
        "tokens": len(rows),
        "seconds_per_token": seconds / count,
    }


def responses(policy, layout, prompts, temperature, seed=0):
    """Returns the tokens of our answers, with EOS if they have one."""
    sampler = samplers.make_sampler(policy.model, layout, temperature=temperature, batch_size=len(prompts))
    (episodes, _), *_ = sampler(policy.params, prompts, jax.random.key(seed))
    return samplers.responses(episodes)


def judge(run, records, texts, baseline):
    """Returns {name: the win rate of its answers against ours, by held-out labelers}."""
    judged = run.source.judge(
        Answers(
            prompts=[record.prompt for record in records],
            texts=texts,
            baseline=baseline,
            load=run.records,
            rewards=rewards.load(run, "serving").of_rankings,
            folder=run.data_folder,
        )
    )
    return {name: found["win_rate_vs_sft"]["heldout"] for name, found in judged.models.items()}


def main(run):
    """Prints a table with a row for each type of weights."""
    if unknown := set(_DTYPES.value) - set(gguf.DTYPES):
        raise ConfigError(f"--dtypes: expected some of {', '.join(gguf.DTYPES)}, found {', '.join(sorted(unknown))}")
    policy, layout = run.open_policy(_STAGE.value)
    records = run.records(Prompt, "test")
    prompts = [record.prompt for record in records[: _COMPARED.value]]
    judged = records[: _JUDGED.value]
    texts, results = {}, {}
    with parallel.on_mesh(run.config.parallel), tempfile.TemporaryDirectory() as folder:
        for dtype in _DTYPES.value:
            path = pathlib.Path(folder, f"{dtype}.gguf")
            exported.write_gguf(policy, layout, path, dtype)
            began = time.monotonic()
            with serve(path, _THREADS.value) as asked:
                results[dtype] = {"bytes": path.stat().st_size, **compare(asked, policy, layout, prompts)}
                drawn = [
                    complete(asked, layout.encode_prompt(record.prompt), layout.max_response, 1.0, seed)[0]
                    for seed, record in enumerate(judged)
                ]
            texts[dtype] = [layout.decode(tokens) for tokens in drawn]
            print(f"{dtype}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        if judged:
            asked = [record.prompt for record in judged]
            ours, texts["ours"] = (
                [layout.decode(tokens) for tokens in responses(policy, layout, asked, 1.0, seed)] for seed in (1, 2)
            )
            rates = judge(run, judged, texts, ours)
            results = {name: {**results.get(name, {}), "win_rate": rate} for name, rate in rates.items()}
    print(table(results))
    if _OUTPUT.value:
        files.write_json(files.parse(_OUTPUT.value, "--output"), {"command": " ".join(sys.argv), "results": results})


def table(results):
    """Returns the results as a table in Markdown."""
    head = ["weights", "bytes", "greedy answers equal", "KL", "loss - ours", "tokens/s", "win rate against ours"]
    lines = []
    for name, found in results.items():
        measured = ["-"] * 5
        if "kl" in found:
            measured = [
                f"{found['bytes']:,}",
                f"{found['answers']:.0%}",
                *(_estimate(found["intervals"][key], "{:.2e}") for key in ("kl", "loss_difference")),
                number(1 / found["seconds_per_token"]),
            ]
        lines.append([name, *measured, _estimate(found["win_rate"], "{:.3f}") if "win_rate" in found else "-"])
    return markdown(head, lines)


def _estimate(found, form):
    return f"{form.format(found['mean'])} ± {form.format((found['high'] - found['low']) / 2)}"


if __name__ == "__main__":
    command_line.read(main)
