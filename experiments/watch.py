"""Shows the progress of one or more runs until they have finished: python experiments/watch.py WORKDIR [WORKDIR ...]

It only reads the folders. If the output is not a terminal, it prints the progress once.
"""

import os
import sys
import time

from rich.console import Console
from rich.live import Live

from instructjax import files
from instructjax.errors import InputError
from instructjax.reporting import watch

SECONDS = 2.0  # between two updates
WIDTH = 140  # of output that is not a terminal


def main(workdirs: list[str]) -> None:
    """Shows the runs, and updates the view until all of them have finished."""
    if workdirs in (["--help"], ["-h"]):
        print(__doc__)
        return
    if not workdirs:
        raise InputError("expected the folder of a run, or several, found none")
    console = Console()
    if not console.is_terminal:
        Console(width=WIDTH).print(watch.render(workdirs))
        return
    with Live(watch.render(workdirs), console=console, auto_refresh=False) as live:
        while not all(map(watch.is_finished, workdirs)):
            time.sleep(SECONDS)
            live.update(watch.render(workdirs), refresh=True)


if __name__ == "__main__":
    try:
        main([os.fspath(files.parse(workdir, "WORKDIR")) for workdir in sys.argv[1:]])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        pass  # the usual way to stop watching
