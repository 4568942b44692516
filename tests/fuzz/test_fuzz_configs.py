"""With any command line or recipe, a run begins, or it ends with 2 and a reason of one line."""

import command_line
from hypothesis import example, given
from hypothesis import strategies as st

from configs import e2e, instructgpt, sandbox
from instructjax.errors import InputError
from instructjax.recipe import check
from tests import scripts
from tests.fuzz import tries


def leaves(config, prefix=""):
    for name, value in config.items():
        yield prefix + name
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{name}.")


KEYS = sorted({key for recipe in (instructgpt, e2e, sandbox) for key in leaves(recipe.get_config())})
RECIPES = (
    "configs/sandbox.py:smoke",
    "configs/own.py:tiny",
    "configs/e2e.py",
    "configs/gpt2.py:124m",
    "configs/dpo.py",
)
VALUES = (
    *("", "0", "1", "-1", "3", "4", "64", "0.5", "1e400", "-0.0", "nan", "inf", "9" * 30, "9" * 5000, "1_000", "0x10"),
    *("None", "True", "false", "()", "(1, 2)", "('a',)", "[", "[1", "{}", '{"epochs": 3}', "lambda: 0", "'a'", "a b"),
    *("a\nb", "é", "\udcff", "\0", "[" * 3000, "-" * 3000 + "1", "pmap", "stop", "float32", "os:getcwd", "a:b:c", "/"),
)
SOURCE = """from ml_collections import ConfigDict
from configs import sandbox
def get_config(variant=""):
    config = sandbox.get_config("smoke").unlock()
{}
    return config
"""


def assert_begins_or_says_why(arguments):
    with tries.only_input_errors():
        try:
            scripts.end_of("script.py", lambda: command_line.read(lambda run: check.recipe(run.config)), arguments)
        except scripts.Left as left:
            told = str(left)
            assert left.code == 2 and told.startswith("error: ") and told.count("\n") == 1, told
            assert len(told) < 1500
            raise InputError(told.rstrip("\n")) from None


overrides = st.builds(
    lambda dashes, key, equals, value: f"{dashes}{key}{equals}{value}",
    st.sampled_from(["--config.", "--config.", "--config.", "-config.", "--noconfig.", "--config"]),
    st.sampled_from(KEYS) | st.sampled_from(["", ".", "a", "sft.a", "sft.epochs.a", "sft[0]", "model.rope", "é"]),
    st.sampled_from(["=", "=", "=", "=", "", " ", "=="]),
    st.sampled_from(VALUES) | st.integers().map(str) | st.floats().map(str) | st.text(max_size=5),
)
others = st.sampled_from(
    [
        "",
        "-",
        "--",
        "--=",
        "--workdir",
        "--workdir=",
        "--workdir=a",
        "a",
        "--flagfile=/nowhere",
        "--config",
        "--config=",
    ]
    + ["--config=configs", "--config=configs/sandbox.py:", "--config=configs/sandbox.py:smoke:smoke", "--config=\0"]
    + ["--config=README.md", "--nowhere=1"]
)


@tries.tries
@given(st.sampled_from([None, *RECIPES]), st.lists(overrides | others, max_size=4))
@example(None, ["--flagfile=/nowhere"])
@example("configs/sandbox.py", ["--config.model.local_window=4"])
@example(None, ["--config", "--config.comparisons=" + "[" * 3000])
@example(None, ["--", "--config.comparisons=" + "[" * 3000])
def test_flags(recipe, arguments):
    assert_begins_or_says_why([*([f"--config={recipe}"] if recipe else []), *arguments])


expressions = st.sampled_from(
    [
        "None",
        "True",
        "0",
        "-1",
        "3",
        "2**31",
        "10**30",
        "0.5",
        "float('nan')",
        "float('inf')",
        "-1e308",
        "''",
        "'a'",
        "b'a'",
    ]
    + ["'\\n'", "'\\0'", "()", "[]", "{}", "(1,)", "('a', 2)", "object()", "lambda: 0", "config", "ConfigDict()", "1j"]
    + [
        "__import__('numpy').float32(3)",
        "__import__('numpy').ones(3)",
        "[[[[]]]]",
        "range(3)",
        "config.model",
        "1/0",
        "x",
    ]
)
statements = st.one_of(
    st.builds("config.{} = {}".format, st.sampled_from(KEYS), expressions),
    st.builds("with config.ignore_type(): config.{} = {}".format, st.sampled_from(KEYS), expressions),
    st.builds("config.update({})".format, expressions),
    st.builds("del config.{}".format, st.sampled_from(KEYS)),
    st.builds("return {}".format, expressions),
    st.builds("raise {}('a\\nb')".format, st.sampled_from(["OSError", "KeyError", "RuntimeError", "AssertionError"])),
    st.sampled_from(
        ["config.new = 3", "config.lock()", "return", "raise KeyError", "raise", "def f(:", "  x", "\0", "\f"]
    ),
    st.sampled_from(["(" * 500, "import nowhere", "assert False", "config = {'sft': 3}", "sandbox.x"]),
)


@tries.tries
@given(st.lists(statements, min_size=1, max_size=3))
def test_a_recipe_with_other_statements(tmp_path, lines):
    path = tmp_path / "recipe.py"
    path.write_text(SOURCE.format("\n".join(f"    {line}" for line in lines)))
    assert_begins_or_says_why([f"--config={path}"])


@tries.tries
@given(tries.any_bytes(SOURCE.format("    config.sft.epochs = 3").encode()))
def test_a_recipe_of_any_bytes(tmp_path, content):
    path = tmp_path / "recipe.py"
    path.write_bytes(content)
    assert_begins_or_says_why([f"--config={path}"])
