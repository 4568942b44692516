"""`instructjax SCRIPT FLAGS` is `python experiments/SCRIPT.py FLAGS`, where a wheel is installed and no repository is.

The scripts' own `--help` tells their flags.
"""

import pathlib
import runpy
import sys

FOLDER = pathlib.Path(__file__).resolve().parent
PARTS = {"__init__", "__main__", "command_line", "benchmark_work", "benchmark_page"}  # no scripts, or the repository's


def main():
    """Runs the script that the first argument names."""
    scripts = sorted({path.stem for path in FOLDER.glob("*.py")} - PARTS)
    _, *arguments = sys.argv
    if arguments[:1] in (["--help"], ["-h"]):
        print(f"{__doc__}\nSCRIPT is one of {', '.join(scripts)}.")
        return
    if not arguments or arguments[0] not in scripts:
        found = f"found {arguments[0]!r}" if arguments else "found none"
        print(f"error: instructjax: expected one of {', '.join(scripts)}, {found}", file=sys.stderr)
        sys.exit(2)
    script = str(FOLDER / f"{arguments[0]}.py")
    sys.argv = [script, *arguments[1:]]
    sys.path.insert(0, str(FOLDER))  # as Python does for a script
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
