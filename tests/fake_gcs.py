"""A server of Google Cloud Storage on this machine, as far as gcsfs, tensorstore and Google's client use its JSON API.

Like the real one, it writes objects whole: it cannot append, rename or lock, and has no folders.
"""

import contextlib
import dataclasses
import email.utils
import http.server
import itertools
import json
import re
import threading
import urllib.parse


@dataclasses.dataclass
class Object:
    content: bytes
    generation: int


class Store:
    """The objects of all buckets, by bucket and name.

    Attributes:
      requests: the method and the name of each object that a request has named.
      before_write: is called with the name of an object before it is stored.
    """

    def __init__(self, *buckets):
        self.objects = {bucket: {} for bucket in buckets}
        self.requests = []
        self.before_write = lambda name: None
        self.uploads = {}
        self.lock = threading.RLock()
        self._numbers = itertools.count(1)

    def number(self):
        return next(self._numbers)

    def names(self, bucket, prefix=""):
        with self.lock:
            return sorted(name for name in self.objects[bucket] if name.startswith(prefix))

    def read(self, bucket, name):
        return self.objects[bucket][name].content


def _described(bucket, name, found):
    return {
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{found.generation}",
        "bucket": bucket,
        "name": name,
        "size": str(len(found.content)),
        "generation": str(found.generation),
        "metageneration": "1",
        "updated": "2026-01-01T00:00:00.000Z",
        "timeCreated": "2026-01-01T00:00:00.000Z",
        "storageClass": "STANDARD",
        "contentType": "application/octet-stream",
    }


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet per response: small packets would wait for acknowledgments
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    @property
    def store(self):
        return self.server.store

    def _send(self, status, content=b"", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers.setdefault("content_type", "application/json")
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def _fail(self, status, message):
        self._send(status, {"error": {"code": status, "message": message, "errors": [{"message": message}]}})

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _handle(self):
        url = urllib.parse.urlsplit(self.path)
        query = {key: values[-1] for key, values in urllib.parse.parse_qs(url.query, keep_blank_values=True).items()}
        body = self._body()
        found = re.fullmatch(r"/(?:(upload|download)/)?storage/v1/b/([^/]+)(?:/o(?:/(.*))?)?", url.path)
        if not found:
            self._fail(501, f"not in the fake: {self.command} {url.path}")
            return
        kind, bucket, rest = found[1], found[2], found[3]
        with self.store.lock:
            if bucket not in self.store.objects:
                self._fail(404, "The specified bucket does not exist.")
            elif kind == "upload":
                self._upload(bucket, query, body)
            elif rest:
                name, *further = rest.split("/")
                self._object(bucket, urllib.parse.unquote(name), further, query)
            elif re.search("/o/?$", url.path):
                self._list(bucket, query)
            else:
                self._send(200, {"kind": "storage#bucket", "id": bucket, "name": bucket, "location": "HERE"})

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def _matches(self, found, query):
        """Returns whether an object (None if there is none) meets the preconditions of a request."""
        generation = found.generation if found else 0
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
            return False
        return "ifGenerationNotMatch" not in query or int(query["ifGenerationNotMatch"]) != generation

    def _object(self, bucket, name, further, query):
        objects = self.store.objects[bucket]
        found = objects.get(name)
        self.store.requests.append((self.command, name))
        if further and further[0] in ("rewriteTo", "copyTo", "moveTo"):
            self._fail(501, "not in the fake: an object is copied or moved")
        elif self.command == "GET" and found is None:
            self._fail(404, f"No such object: {bucket}/{name}")
        elif self.command == "GET" and not self._matches(found, query):
            self._fail(304 if "ifGenerationNotMatch" in query else 412, "Precondition failed")
        elif self.command == "GET" and query.get("alt") == "media":
            self._content(found)
        elif self.command == "GET":
            self._send(200, _described(bucket, name, found))
        elif not self._matches(found, query):
            self._fail(412, "Precondition failed")
        elif found is None:
            self._fail(404, f"No such object: {bucket}/{name}")
        else:
            del objects[name]
            self._send(204)

    def _content(self, found):
        size = len(found.content)
        headers = {
            "x_goog_generation": str(found.generation),
            "x_goog_stored_content_length": str(size),
            "Last_Modified": email.utils.formatdate(0, usegmt=True),
            "content_type": "application/octet-stream",
        }
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            self._send(200, found.content, **headers)
            return
        first = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
        last = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
        if first >= size:
            self._fail(416, "Requested range not satisfiable")
            return
        self._send(206, found.content[first : last + 1], Content_Range=f"bytes {first}-{last}/{size}", **headers)

    def _list(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("pageToken", "")
        items, prefixes = [], set()
        for name in self.store.names(bucket, prefix):
            beyond = query.get("endOffset") and name >= query["endOffset"]
            if name <= after or name < query.get("startOffset", "") or beyond:
                continue
            head, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if cut:
                prefixes.add(prefix + head + cut)
            else:
                items.append(_described(bucket, name, self.store.objects[bucket][name]))
        page = {"kind": "storage#objects"}
        if (limit := int(query.get("maxResults", 1000))) < len(items):
            items = items[:limit]
            page["nextPageToken"] = items[-1]["name"]
        self._send(200, {**page, "items": items, "prefixes": sorted(prefixes)})

    def _upload(self, bucket, query, body):
        if "upload_id" in query:
            self._chunk(query["upload_id"], body)
            return
        if query["uploadType"] == "resumable":
            upload = str(self.store.number())
            name = query.get("name") or json.loads(body)["name"]
            self.store.uploads[upload] = (bucket, name, query, [])
            host = self.headers["Host"]
            url = f"http://{host}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={upload}"
            self._send(200, b"", Location=url)
        elif query["uploadType"] == "multipart":
            boundary = re.search('boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            _, described, content = body.removesuffix(b"--").split(b"--" + boundary, 2)
            described = re.split(rb"\r?\n\r?\n", described, maxsplit=1)[1]
            content = re.split(rb"\r?\n\r?\n", content, maxsplit=1)[1]
            content = re.sub(rb"\r?\n--" + boundary + rb"\Z", b"", content)
            self._store(bucket, json.loads(described)["name"], query, content)
        else:
            self._store(bucket, query["name"], query, body)

    def _chunk(self, upload, body):
        bucket, name, query, parts = self.store.uploads[upload]
        place = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+|\*)", self.headers.get("Content-Range", "bytes */*"))
        parts.append(body)
        if place[1] == "*" or sum(map(len, parts)) < int(place[1]):
            self._send(308, b"", Range=f"bytes=0-{sum(map(len, parts)) - 1}")
            return
        self._store(bucket, name, query, b"".join(parts))

    def _store(self, bucket, name, query, content):
        objects = self.store.objects[bucket]
        self.store.requests.append((self.command, name))
        if not self._matches(objects.get(name), query):
            self._fail(412, "Precondition failed")
            return
        self.store.before_write(name)
        objects[name] = Object(content, self.store.number())
        self._send(200, _described(bucket, name, objects[name]))


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Ignores clients that were killed or hang up."""


@contextlib.contextmanager
def serving(*buckets):
    """Serves empty buckets, and yields their Store and the environment with which a process finds them."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.store = Store(*buckets)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield (
            server.store,
            {
                "STORAGE_EMULATOR_HOST": url,  # gcsfs and Google's client
                "TENSORSTORE_GCS_HTTP_URL": url,
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",  # tensorstore
                "GOOGLE_CLOUD_PROJECT": "any",
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # gcsfs would ask for the kind of bucket over gRPC
            },
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
