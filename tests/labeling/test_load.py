"""50 labelers over HTTP make 10,000 labels while the server is killed three times.

    pytest -m slow -s -n 0 tests/labeling/test_load.py

It prints the rate and the latencies. No acknowledged label may be lost, changed or doubled.
"""

import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from instructjax import records
from instructjax.records import Ranking
from tests.labeling import postgres
from tests.labeling.desks import Client, rank
from tests.scripts import SCRIPTS

LABELERS, KILLS = 50, 3


class Server:
    """`experiments/label.py` in its own process, which is killed and started again."""

    def __init__(self, workdir, database):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._flags = [f"--workdir={workdir}", f"--port={self.port}", "--rate=1000000"]
        self._flags += [f"--database={database}"] if database else []

    def start(self, *flags):
        """Starts the server, and returns {labeler or "overview": path of the link}."""
        command = [sys.executable, "-u", str(SCRIPTS / "label.py"), *self._flags, *flags]
        environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                break
            assert self._process.poll() is None
            time.sleep(0.05)
        os.set_blocking(self._process.stdout.fileno(), False)  # all links were printed before the port was open
        return dict(re.findall(r"^(.*): http://[^/]*(/\S*)$", self._process.stdout.read(), re.MULTILINE))

    def kill(self):
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()


class Labeler(threading.Thread):
    """Ranks until there is nothing to do. A request without a response is sent again.

    Attributes:
      acknowledged: {prompt: the scores that were submitted by answer}.
      seconds: of each request, those that failed left out.
      failed: the number of requests without a response.
    """

    def __init__(self, port, name, link):
        super().__init__(name=name, daemon=True)
        self._port, self._link, self._client = port, link, Client("127.0.0.1", port)
        self.acknowledged, self.seconds, self.failed, self.error = {}, {"GET": [], "POST": []}, 0, None

    def run(self):
        try:
            self._request("GET", self._link)
            page = self._request("GET", "/")
            while page.path != "/done":
                prompt = re.search(r"prompt \d+", page.text)[0]
                draw = random.Random(f"{self.name} {prompt}")
                scores = {text: draw.randrange(3) for text in sorted(page.answers)}
                answered = self._request("POST", page.path, **rank(page, scores))
                assert answered.status == 200
                self.acknowledged[prompt] = scores
                page = answered
        except BaseException as error:  # shown by the test
            self.error = error

    def _request(self, method, path, **form):
        """Sends a request and follows redirects, until there is a response."""
        while True:
            started = time.perf_counter()
            try:
                page = self._client.post(path, **form) if form else self._client.get(path)
            except (OSError, http.client.HTTPException):
                self.failed += 1
                self._client.close()
                time.sleep(0.1)
                continue
            self.seconds[method].append(time.perf_counter() - started)
            assert page.status == 200, (page.status, page.text[-300:])
            return page


def simulate(tmp_path, database, tasks, labelers):
    """Returns the labelers when all tasks are done, the exported rankings and the seconds that it took."""
    lines = [{"prompt": f"prompt {i}", "responses": [f"{i} {'word ' * 40}{k}" for k in range(4)]} for i in range(tasks)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = [f"labeler-{i:02d}" for i in range(labelers)]
    server = Server(tmp_path / "run", database)
    links = server.start(f"--tasks={tmp_path / 'tasks.jsonl'}", "--kind=ranking", f"--labelers={','.join(names)}")
    people = [Labeler(server.port, name, links[name]) for name in names]
    started = time.perf_counter()
    try:
        for person in people:
            person.start()
        for kill in range(1, KILLS + 1):
            while sum(len(person.acknowledged) for person in people) < kill * tasks / (KILLS + 1):
                time.sleep(0.05)
                assert not any(person.error for person in people), [person.error for person in people if person.error]
            server.kill()
            server.start()
        for person in people:
            person.join()
        took = time.perf_counter() - started
        admin = Client("127.0.0.1", server.port)
        admin.get(links["overview"])
        lines = admin.get("/admin/export/rankings.jsonl").text.splitlines()
    finally:
        server.kill()
    return people, [records.parse(line, Ranking) for line in lines], took


def check(people, exported, tasks):
    assert [person.error for person in people if person.error] == []
    assert sum(person.failed for person in people) > 0  # the kills were felt
    assert len(exported) == tasks == len({record.prompt for record in exported})
    found = {(record.labeler, record.prompt): record for record in exported}
    acknowledged = [
        (person.name, prompt, scores) for person in people for prompt, scores in person.acknowledged.items()
    ]
    assert len(acknowledged) == tasks  # a label that was saved but not acknowledged was sent again
    for name, prompt, scores in acknowledged:
        record = found[name, prompt]
        given = [scores[text] for text in record.responses]
        levels = sorted(set(given))
        assert record.scores == tuple(1 + levels.index(score) for score in given)


def report(people, tasks, took, database):
    lines = [f"\n{database}: {tasks} labels by {len(people)} labelers in {took:.0f} s, {KILLS} kills"]
    for method in ("GET", "POST"):
        seconds = np.concatenate([person.seconds[method] for person in people])
        p50, p95, p99 = 1000 * np.percentile(seconds, [50, 95, 99])
        lines.append(f"{method}: n {len(seconds)}, median {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms")
    lines.append(f"requests without a response, sent again: {sum(person.failed for person in people)}")
    print("\n".join(lines))


@pytest.mark.slow
def test_sqlite_loses_and_doubles_no_acknowledged_label(tmp_path, tasks=10_000):
    people, exported, took = simulate(tmp_path, None, tasks, LABELERS)
    report(people, tasks, took, "SQLite")
    check(people, exported, tasks)


@pytest.mark.slow
@postgres.needs_postgres
def test_postgres_loses_and_doubles_no_acknowledged_label(tmp_path, tasks=10_000):
    with postgres.serve() as database:
        people, exported, took = simulate(tmp_path, database, tasks, LABELERS)
    report(people, tasks, took, "PostgreSQL")
    check(people, exported, tasks)
