"""Runs scripts of experiments/ in this process, any number of times."""

import contextlib
import io
import runpy
import sys

import command_line
import pytest
from absl import flags

SCRIPTS = command_line.ROOT / "experiments"


class Left(Exception):
    """A script exited with a code other than 0; the message is its standard error."""

    def __init__(self, code, told):
        super().__init__(told)
        self.code = code


def run(script, *arguments, stdin=b""):
    """Returns the output of a script; raises Left if it fails."""
    path = str(SCRIPTS / script)
    return end_of(path, lambda: runpy.run_path(path, run_name="__main__"), arguments, stdin)


def end_of(program, main, arguments, stdin=b""):
    """Returns the output of `main` with these arguments; raises Left if the exit code is not 0."""
    printed, told = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(told),
        without_flags_of_imported_scripts(),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", [program, *arguments])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        patch.setattr(sys, "dont_write_bytecode", True)  # which is taken for that of another recipe of the same second
        try:
            main()
        except SystemExit as error:
            if error.code:
                raise Left(error.code, told.getvalue()) from None
        finally:
            for name in list(flags.FLAGS):
                if name.startswith("config.") or flags.FLAGS.find_module_defining_flag(name) == program:
                    delattr(flags.FLAGS, name)
            sys.modules.pop("config_config", None)  # the recipe's, to which another would be added
            flags.FLAGS.unparse_flags()
            for name in ("config", "workdir"):
                flags.FLAGS[name].unparse()
    return printed.getvalue()


@contextlib.contextmanager
def without_flags_of_imported_scripts():
    """Sets aside flags that tests have defined by importing a script: the one that is run may have the same names."""
    scripts = {path.stem for path in SCRIPTS.iterdir()} - {"command_line"}
    modules = {name: flags.FLAGS.find_module_defining_flag(name) for name in flags.FLAGS}
    aside = {name: flags.FLAGS[name] for name, module in modules.items() if module.partition(".")[0] in scripts}
    for name in aside:
        delattr(flags.FLAGS, name)
    try:
        yield
    finally:
        for name, flag in aside.items():
            flags.FLAGS[name] = flag
            flags.FLAGS.register_flag_by_module(modules[name], flag)
