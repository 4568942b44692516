"""A reward function gets texts and records, and whatever it does wrong becomes one line."""

import contextlib
import http.server
import json
import os
import pathlib
import re
import sys
import threading
import types

import numpy as np
import pytest

from instructjax.errors import ConfigError, RewardFunctionError
from instructjax.rollout import reward_function

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "own_reward.md"
PROMPTS, RESPONSES = ["the fox", "a red owl"], ["sleeps", "in a forest"]
RECORDS = [{"answer": "4"}, {}]


def loaded(monkeypatch, function):
    """Returns the function as `load` finds it in a module."""
    monkeypatch.setitem(sys.modules, "planted_rewards", types.SimpleNamespace(score=function, __file__=__file__))
    return reward_function.load("planted_rewards:score")


def test_it_sees_prompts_and_responses(monkeypatch):
    seen = []

    def lengths(prompts, responses):
        seen.append((prompts, responses))
        return [len(prompt) + 100 * len(response) for prompt, response in zip(prompts, responses, strict=True)]

    assert loaded(monkeypatch, lengths)(PROMPTS, RESPONSES, RECORDS) == [607.0, 1109.0]
    assert seen == [(PROMPTS, RESPONSES)]


def test_a_third_parameter_named_records_gets_the_fields_of_the_records(monkeypatch):
    seen = []

    def gold(prompts, responses, records):
        seen.extend(records)
        return [0.0, 1.0]

    assert loaded(monkeypatch, gold)(PROMPTS, RESPONSES, RECORDS) == [0.0, 1.0]
    assert seen == RECORDS
    assert loaded(monkeypatch, lambda p, r, scale=2.0: [scale, scale])(PROMPTS, RESPONSES, RECORDS) == [2.0, 2.0]


@pytest.mark.parametrize(
    "found", [np.array([1, 0]), np.float32([1, 0]), (True, False), [np.float64(1), np.int32(0)], [np.array(1.0), 0]]
)
def test_numbers_of_any_kind_are_scores(monkeypatch, found):
    assert loaded(monkeypatch, lambda prompts, responses: found)(PROMPTS, RESPONSES, RECORDS) == [1.0, 0.0]


BOTH = "expected a finite number for each of 2 responses, found "
ONE = "expected a finite number of float32 for the response 'in a forest', found "


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([1.0], BOTH + "1: [1.0]"),
        ([1.0, 2.0, 3.0], BOTH + "3: [1.0, 2.0, 3.0]"),
        (None, BOTH + "None"),
        (1.0, BOTH + "1.0"),
        ("12", BOTH + "'12'"),
        ({"a": 1, "b": 2}, BOTH + "{'a': 1, 'b': 2}"),
        ([1.0, None], ONE + "None"),
        ([1.0, "7"], ONE + "'7'"),
        ([1.0, float("nan")], ONE + "nan"),
        ([1.0, float("-inf")], ONE + "-inf"),
        ([1.0, 1e39], ONE + "1e+39"),
        ([1.0, 10**400], ONE + "1000"),
        (np.ones((2, 1)), "expected a finite number of float32 for the response 'sleeps', found array([1.])"),
    ],
)
def test_anything_but_a_finite_number_for_each_response_is_an_error(monkeypatch, found, message):
    with pytest.raises(RewardFunctionError) as error:
        loaded(monkeypatch, lambda prompts, responses: found)(PROMPTS, RESPONSES, RECORDS)
    place = os.path.relpath(__file__)
    assert str(error.value).startswith(f"{place}:score: {message}")


class Late:
    """A score like an array of a device whose program fails after it was returned."""

    def __float__(self):
        raise RuntimeError("out of memory")

    def __repr__(self):
        return "Late()"


def test_a_score_that_fails_when_it_is_read_is_an_error(monkeypatch):
    with pytest.raises(RewardFunctionError, match="for the response 'sleeps', found Late()"):
        loaded(monkeypatch, lambda prompts, responses: [Late(), 1.0])(PROMPTS, RESPONSES, RECORDS)


@pytest.mark.parametrize(
    ("fail", "message"),
    [(lambda: 1 // 0, "ZeroDivisionError: integer division or modulo by zero"), (lambda: sys.exit(3), "sys.exit(3)")],
)
def test_an_error_or_an_exit_is_named_with_its_line(monkeypatch, fail, message):
    with pytest.raises(RewardFunctionError) as error:
        loaded(monkeypatch, lambda prompts, responses: fail())(PROMPTS, RESPONSES, RECORDS)
    line = f" ({os.path.basename(__file__)}:{fail.__code__.co_firstlineno})"
    assert str(error.value).endswith(f"{BOTH}{message}{line}; the first response is 'sleeps'")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("math", "expected MODULE:FUNCTION, found 'math'"),
        ("nowhere_at_all:f", "expected 'nowhere_at_all:f' to be found, found: ModuleNotFoundError: No module named "),
        ("math:f", "expected 'math:f' to be found, found: AttributeError: module 'math' has no attribute 'f'"),
        ("math:pi", "expected a function, found math:pi = 3.14"),
        ("leaving_rewards:f", "expected 'leaving_rewards:f' to be found, found: sys.exit('no key')"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_reported(tmp_path, monkeypatch, name, message):
    (tmp_path / "leaving_rewards.py").write_text("import sys\nsys.exit('no key')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        reward_function.load(name)
    assert str(error.value).startswith(f"ppo.reward_function: {message}")


def test_the_digest_is_that_of_the_file(tmp_path, monkeypatch):
    path = tmp_path / "digested_rewards.py"
    path.write_text("def f(prompts, responses): return [1.0 for _ in responses]\n")
    monkeypatch.chdir(tmp_path)
    function = reward_function.load("digested_rewards:f")
    before = function.digest()
    path.write_text(path.read_text() + "# changed\n")
    assert function.name == "digested_rewards.py:f" and before != function.digest() != ""
    assert reward_function.load("builtins:zip").digest() == ""


@contextlib.contextmanager
def server(status):
    """Serves the lengths of responses; four requests are answered together, and none alone."""
    together = threading.Barrier(4)

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            together.wait(timeout=20)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"score": len(asked["prompt"] + asked["response"])}).encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}/"
        serving.shutdown()


@pytest.mark.parametrize("status", [200, 503])
def test_the_page_s_function_asks_a_server_about_several_responses_at_a_time(monkeypatch, status):
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "served" in block)
    exec(code, found := {})
    with server(status) as found["URL"]:
        function = loaded(monkeypatch, found["served"])
        responses = ["x" * number for number in range(8)]
        if status == 200:
            assert function(["ab"] * 8, responses, [{}] * 8) == [float(2 + number) for number in range(8)]
        else:
            with pytest.raises(RewardFunctionError, match="ConnectionError: HTTP Error 503") as error:
                function(["ab"] * 8, responses, [{}] * 8)
            assert isinstance(error.value.__cause__, ConnectionError)  # so that a run tries again
