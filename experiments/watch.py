"""Shows how far runs are, side by side, until they are over: python experiments/watch.py WORKDIR [WORKDIR ...]

Reads only. Where the output is no terminal it shows them once.
"""

import sys
import time

from rich.console import Console
from rich.live import Live

from instructjax.errors import InputError
from instructjax.reporting import watch

SECONDS = 2.0  # between two looks
WIDTH = 140  # of what is no terminal


def main(workdirs):
    """The view of the runs, again and again while one goes on."""
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
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        pass  # the usual way to leave
