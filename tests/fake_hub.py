"""A model hub on this machine, as far as huggingface_hub creates, reads and writes repositories of small files."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse


class Hub:
    """Repositories by OWNER/NAME.

    Attributes:
      files: the files of each repository.
      private: the repositories that are read and written with the token only.
      token: the token that may write.
    """

    def __init__(self, token="hf_secret"):
        self.files, self.private, self.messages, self.token = {}, set(), {}, token

    def sha(self, repo):
        """Returns the id of the only commit."""
        return hashlib.sha1(repr(sorted(self.files[repo].items())).encode()).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, code, content=b"", headers=()):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, code, error, message):
        self.answer(code, {"error": message}, {"X-Error-Code": error, "X-Error-Message": message})

    @property
    def hub(self):
        return self.server.hub

    @property
    def has_token(self):
        return self.headers.get("authorization") == f"Bearer {self.hub.token}"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repo, revision = (api[1], api[3]) if api else (file[1], file[2])
        if repo not in self.hub.files or (repo in self.hub.private and not self.has_token):
            return self.refuse(404, "RepoNotFound", "Repository not found")
        files, sha = self.hub.files[repo], self.hub.sha(repo)
        if revision not in (None, "main", sha):
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        if file:
            content = files[file[3]]
            return self.answer(200, content, {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
        if api[2] == "tree":
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            return self.answer(200, entries)
        self.answer(200, {"id": repo, "sha": sha, "siblings": [{"rfilename": name} for name in files]})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urllib.parse.urlparse(self.path).path
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if not self.has_token:
            return self.refuse(401, "", "Invalid username or password.")
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] != "me":
                return self.refuse(403, "", "You don't have the rights to create a model under this namespace")
            if repo in self.hub.files:
                return self.answer(409, {"url": f"{self.server.url}/{repo}"})
            self.hub.files[repo] = {}
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(repo)
            return self.answer(200, {"url": f"{self.server.url}/{repo}"})
        repo, action = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path).groups()
        if action == "preupload":
            named = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in named]
            return self.answer(200, {"files": modes})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "header":
                self.hub.messages[repo] = line["value"]["summary"]
            else:
                self.hub.files[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        sha = self.hub.sha(repo)
        self.answer(200, {"commitUrl": f"{self.server.url}/{repo}/commit/{sha}", "commitOid": sha})


@contextlib.contextmanager
def serve(hub):
    """Serves a hub, and gives its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub, server.url = hub, f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
