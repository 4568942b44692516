"""Curves for TensorBoard, in one file for each start of a run."""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping

from etils import epath
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from instructjax import files, warning_log


class EventFile:
    """Writes scalars so that TensorBoard shows each step once, however often the run was killed.

    TensorBoard reads the files of a folder in the order of their names. A file hides the steps of earlier files
    from its own first step on. So names count the starts of the run. The usual names contain the time of day, and
    would be in the wrong order if a clock was set back. A step is in the file when `write` returns, not after an
    interval, so a killed run loses none.
    """

    def __init__(self, folder: epath.Path, *, first_step: int):
        """Begins a new file, and creates the folder if needed.

        Args:
          folder: the folder of all files of the run.
          first_step: this step and later ones are hidden in earlier files.
        """
        folder.mkdir(parents=True, exist_ok=True)
        starts = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")]
        path = folder / f"events.out.tfevents.{max(starts, default=0) + 1:010d}"
        self._file = files.GrowingFile(path, warn=warning_log.warn)
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._add(Event(wall_time=time.time(), step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds the scalars of a step by name."""
        for name, value in scalars.items():
            self._add(Event(wall_time=time.time(), step=step, summary=summary.scalar(name, float(value))))

    def _add(self, event: Event) -> None:
        """Adds a record: length, checksum, content, checksum."""
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        self._file.write(b"".join(part + struct.pack("<I", masked_crc32c(part)) for part in (length, content)))

    def flush(self) -> None:
        """Returns when all scalars are in the file."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
