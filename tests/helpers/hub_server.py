"""A real HTTP server on loopback that takes uploads as the Hugging Face hub does: creating, asking, committing."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USER = "someone"
"""The owner of repositories that a client gives no owner."""


class Hub(ThreadingHTTPServer):
    """Keeps the files of every commit, by repository and path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.cards: list[str] = []
        """The cards that a client asked to check."""
        self.unknown: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a new process reaches this server as the hub."""
        switches = dict.fromkeys(("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET", "CI"), "1")
        return {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_notatoken", **switches}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *arguments) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/api/whoami-v2":
            return self._send({"type": "user", "name": USER})
        self.server.unknown.append(f"GET {self.path}")
        self._send({"error": "not found"}, 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization') or USER}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            return self._send({"url": f"{self.server.url}/{name}", "name": name, "id": name})
        if parts == ["api", "validate-yaml"]:
            self.server.cards.append(json.loads(body)["content"])
            return self._send({"errors": [], "warnings": []})
        if parts[:2] == ["api", "models"] and parts[4] == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]
            return self._send({"files": modes})
        if parts[:2] == ["api", "models"] and parts[4] == "commit":
            name = "/".join(parts[2:4])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repositories[name][line["value"]["path"]] = content
            return self._send({"commitUrl": f"{self.server.url}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40})
        self.server.unknown.append(f"POST {self.path}")
        return self._send({"error": "not found"}, 404)

    def _send(self, answer: object, status: int = 200) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
