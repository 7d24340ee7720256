"""A Cloud Storage bucket in memory, as far as gcsfs asks: uploads with `ifGenerationMatch=0`, reads, lists, copies.

python tests/corpus/gcs_server.py [--unconditional]    prints its port; ends when stdin closes
"""

import json
import re
import sys
import threading
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

OBJECT = re.compile(r"/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)$")
COPY = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)$")


class Bucket(ThreadingHTTPServer):
    """conditional: honour ifGenerationMatch, as the real service does."""

    def __init__(self, conditional=True):
        super().__init__(("127.0.0.1", 0), Answer)
        self.conditional, self.objects, self.lock = conditional, {}, threading.Lock()


class Answer(BaseHTTPRequestHandler):
    def do_POST(self):
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        copy = COPY.match(url.path)
        if copy:
            return self._copy(*(unquote(part) for part in copy.groups()))
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        meta, data = message_from_bytes(head + body, policy=policy.HTTP).iter_parts()
        name = json.loads(meta.get_content() if meta.get_content_type() == "text/plain" else meta.get_payload())["name"]
        with self.server.lock:
            taken = name in self.server.objects
            if taken and self.server.conditional and query.get("ifGenerationMatch") == "0":
                return self._reply(412, {"error": {"code": 412, "message": "conditionNotMet"}})
            self.server.objects[name] = data.get_payload(decode=True)
        return self._reply(200, self._described(name))

    def _copy(self, _, source, __, target):
        with self.server.lock:
            if source not in self.server.objects:
                return self._missing()
            self.server.objects[target] = self.server.objects[source]
        return self._reply(200, {"done": True, "resource": self._described(target)})

    def do_GET(self):
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        one = OBJECT.match(url.path)
        if one is None:
            prefix = query.get("prefix", "")
            names = sorted(name for name in self.server.objects if name.startswith(prefix))
            folders = set()
            if query.get("delimiter"):
                below = {name: name[len(prefix) :].partition("/") for name in names}
                folders = {prefix + first + "/" for first, slash, _ in below.values() if slash}
                names = [name for name, (_, slash, _) in below.items() if not slash]
            return self._reply(200, {"items": [self._described(n) for n in names], "prefixes": sorted(folders)})
        name = unquote(one.group(2))
        if name not in self.server.objects:
            return self._missing()
        if query.get("alt") == "media" or url.path.startswith("/download/"):
            return self._reply(200, self.server.objects[name])
        return self._reply(200, self._described(name))

    def do_DELETE(self):
        name = unquote(OBJECT.match(urlsplit(self.path).path).group(2))
        return self._reply(204, b"") if self.server.objects.pop(name, None) is not None else self._missing()

    def _described(self, name):
        size = str(len(self.server.objects[name]))
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": "bucket",
            "size": size,
            "etag": "e",
            "generation": "1",
        }

    def _missing(self):
        return self._reply(404, {"error": {"code": 404, "message": "No such object: Not Found"}})

    def _reply(self, status, content):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if data is content else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Silence."""


if __name__ == "__main__":
    server = Bucket(conditional="--unconditional" not in sys.argv)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()
