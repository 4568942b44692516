"""A PostgreSQL server of the system in a temporary folder. PostgreSQL does not run as root."""

import contextlib
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import tempfile
import time

import pytest

USERS = [entry.pw_name for entry in pwd.getpwall() if entry.pw_name in ("postgres", "nobody")]
IS_ROOT = os.getuid() == 0
FOUND = shutil.which("initdb") and shutil.which("postgres") and (USERS or not IS_ROOT)

needs_postgres = pytest.mark.skipif(not FOUND, reason="no PostgreSQL on this machine, or no user to run it")


@contextlib.contextmanager
def serve():
    """Yields the SQLAlchemy URL of a new server."""
    user = {"user": USERS[0]} if IS_ROOT else {}
    with tempfile.TemporaryDirectory(prefix="desk-") as folder:
        if IS_ROOT:
            shutil.chown(folder, USERS[0])
        data = pathlib.Path(folder) / "data"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
        initdb = [shutil.which("initdb"), "--auth=trust", "--username=desk", "--encoding=UTF8", str(data)]
        subprocess.run(initdb, check=True, **quiet, **user)
        options = ["-D", str(data), "-k", folder, "-c", "listen_addresses=", "-c", "max_connections=200"]
        server = subprocess.Popen([shutil.which("postgres"), *options], **quiet, **user)
        try:
            deadline = time.monotonic() + 30
            while not list(pathlib.Path(folder).glob(".s.PGSQL.5432")) and time.monotonic() < deadline:
                assert server.poll() is None
                time.sleep(0.05)
            yield f"postgresql+psycopg://desk@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)  # a fast shutdown
            server.wait(30)
