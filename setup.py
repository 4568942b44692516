"""Puts the recipes and scripts of the repository into the wheel. Everything else is in pyproject.toml."""

import pathlib
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithScripts(build_py):
    """Copies configs/ and experiments/ to instructjax/_scripts, so that a wheel claims one top-level name."""

    def _copies(self):
        """Returns {file in the repository: file in the wheel}."""
        files = (*pathlib.Path("configs").glob("*.py"), *pathlib.Path("experiments").glob("*.py"))
        return {file: pathlib.Path(self.build_lib, "instructjax", "_scripts", file) for file in files}

    def run(self):
        super().run()
        if not self.editable_mode:
            for source, target in self._copies().items():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode=True):
        copies = [] if self.editable_mode else map(str, self._copies().values())
        return [*super().get_outputs(include_bytecode), *copies]


setup(cmdclass={"build_py": BuildWithScripts})
