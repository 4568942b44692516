"""Desks for tests, on a real socket, and labelers who use them over HTTP like a browser without JavaScript."""

import contextlib
import html
import http.client
import http.cookies
import re
import threading
import time
import urllib.parse

import uvicorn

from instructjax.evaluation import comparison
from instructjax.labeling import app, database, queue, security, web
from instructjax.labeling.tasks import Task

SECRET = "a secret of the tests"
HEADERS = {"content-type": "application/x-www-form-urlencoded"}


class Desk:
    """A desk that is being served.

    Attributes:
      engine: its database.
      port: where it listens.
    """

    def __init__(self, engine, port):
        self.engine, self.port = engine, port

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def add(self, tasks, group="training", copies=1):
        with self.engine.begin() as db:
            return queue.add_tasks(db, tasks, group, copies)

    def invite(self, name, group="training"):
        """Adds a labeler, and returns the path of the invitation."""
        with self.engine.begin() as db:
            labeler = queue.add_labeler(db, name, group)
        return f"/join/{security.sign(SECRET, [labeler.id, labeler.key])}"

    def client(self, name, group="training"):
        """Returns the client of a labeler who has opened the invitation."""
        client = Client("127.0.0.1", self.port)
        client.get(self.invite(name, group))
        return client

    def admin(self):
        client = Client("127.0.0.1", self.port)
        client.get(f"/join/{security.sign(SECRET, 'admin')}")
        return client

    def export(self, name="rankings.jsonl"):
        return self.admin().get(f"/admin/export/{name}").text


@contextlib.contextmanager
def serve(database_url, agreement=comparison.ranking_agreement, **settings):
    """Serves a desk on a free port from a thread of this process."""
    engine = database.connect(database_url)
    settings = web.Settings(**{"secret": SECRET, "rate": 1e6, "burst": 10**6, **settings})
    application = app.make_app(engine, settings, agreement)
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield Desk(engine, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
        engine.dispose()


class Page:
    """A response.

    Attributes:
      status: of HTTP.
      path: where redirects have led.
      headers: of the last response.
      text: its body.
    """

    def __init__(self, status, path, headers, text):
        self.status, self.path, self.headers, self.text = status, path, headers, text

    @property
    def csrf(self):
        return re.search(r'name="csrf" value="([^"]+)"', self.text)[1]

    @property
    def prompt(self):
        return html.unescape(
            re.search(r'role="group" aria-labelledby="prompt-title">(.*?)</div>', self.text, re.DOTALL)[1]
        )

    @property
    def answers(self):
        """The answers in the order in which they are shown."""
        found = re.findall(r'<h2 id="[^"]*">Answer.*?<div class="text"[^>]*>(.*?)</div>', self.text, re.DOTALL)
        return [html.unescape(text) for text in found]


class Client:
    """A browser's cookies and redirects, on one connection."""

    def __init__(self, host, port):
        self._connection = http.client.HTTPConnection(host, port, timeout=60)
        self._cookies = {}

    def get(self, path):
        return self._follow("GET", path, None)

    def post(self, path, **form):
        return self._follow("POST", path, urllib.parse.urlencode(form))

    def send(self, method, path, body=None, headers=()):
        """Sends one request, and returns the response without following it."""
        cookies = {"cookie": "; ".join(f"{name}={value}" for name, value in self._cookies.items())}
        self._connection.request(method, path, body, {**cookies, **dict(headers)})
        response = self._connection.getresponse()
        text = response.read().decode()
        for line in response.headers.get_all("set-cookie", []):
            self._cookies.update({name: morsel.value for name, morsel in http.cookies.SimpleCookie(line).items()})
        return Page(response.status, path, response.headers, text)

    def close(self):
        self._connection.close()

    def _follow(self, method, path, body):
        page = self.send(method, path, body, HEADERS if body is not None else {})
        while page.status in (302, 303):
            page = self.send("GET", page.headers["location"].partition("#")[0])
        return page


def rank(page, scores):
    """Returns the form that ranks the answers of a page by {answer: score}, with ties."""
    levels = sorted({scores[text] for text in page.answers}, reverse=True)
    ranks = [levels.index(scores[text]) + 1 for text in page.answers]
    return {"csrf": page.csrf, "action": "save"} | {f"rank-{place}": rank for place, rank in enumerate(ranks)}


def ranking_tasks(count, answers=4, kind="ranking"):
    """Returns tasks whose answers end in their quality."""
    return [
        Task(kind=kind, prompt=f"prompt {i}", answers=tuple(f"answer {i}.{k}" for k in range(answers)))
        for i in range(count)
    ]
