"""Runs a script: `instructjax SCRIPT FLAGS` is `python experiments/SCRIPT.py FLAGS`, from any folder.

`instructjax SCRIPT --help` lists the flags of a script.
"""

import ast
import pathlib
import runpy
import sys

PACKAGE = pathlib.Path(__file__).resolve().parent


def script_root() -> pathlib.Path:
    """Returns the folder that holds configs/ and experiments/: inside a wheel's package, next to it in a clone."""
    packed = PACKAGE / "_scripts"
    return packed if packed.is_dir() else PACKAGE.parent


def find_scripts(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns {name: file} of the programs in a folder; a module that only others import is not a program."""
    return {path.stem: path for path in sorted(folder.glob("*.py")) if "\nif __name__ ==" in path.read_text("utf-8")}


def summary(path: pathlib.Path) -> str:
    """Returns the first line of a script's docstring, without running the script."""
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return docstring.partition("\n")[0]


def main() -> None:
    """Runs the script that the first argument names."""
    root = script_root()
    scripts = find_scripts(root / "experiments")
    _, *arguments = sys.argv
    if arguments[:1] in (["--help"], ["-h"]):
        width = max(map(len, scripts))
        print(f"{__doc__}\nSCRIPT is one of")
        print("\n".join(f"  {name:{width}}  {summary(path)}" for name, path in scripts.items()))
        return
    if not arguments or arguments[0] not in scripts:
        found = f"found {arguments[0]!r}" if arguments else "found none"
        print(f"error: instructjax: expected one of {', '.join(scripts)}, {found}", file=sys.stderr)
        sys.exit(2)
    script = str(scripts[arguments[0]])
    sys.argv = [script, *arguments[1:]]
    # A script imports its neighbors, as Python allows; a recipe imports others from `configs`.
    sys.path[:0] = [str(root / "experiments"), str(root)]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
