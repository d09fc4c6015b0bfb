"""A real HTTP server on loopback that speaks the OpenAI protocol, and misbehaves as real ones do.

What it answers depends on the prompt, the seed and the choice's number alone, as with a server that honours seeds.
"""

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ["red", "green", "blue", "seven", "the sea", "snow ❄", "naïve", "日本", "so\nand so", '"quoted"']

Behaviour = Callable[[int, dict[str, Any]], str]
"""From the number of the request and its body to what the server does about it; `ok` for a good answer."""


class Server(ThreadingHTTPServer):
    """Counts what it is asked for; `behave` decides what it does."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.behave: Behaviour = lambda number, body: "ok"
        self.delay = 0.0
        self.models = ["tiny"]
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.under_way = 0
        self.most_under_way = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, json.dumps({"data": [{"id": name} for name in self.server.models]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            number = len(server.asked)
            server.asked.append(body)
            server.headers.append(dict(self.headers))
            server.times.append(time.monotonic())
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            if server.delay:
                time.sleep(server.delay)
            self._act(server.behave(number, body), body)
        finally:
            with server.lock:
                server.under_way -= 1

    def _act(self, what: str, body: dict[str, Any]) -> None:
        good = json.dumps(answer(body)).encode()
        if what == "ok":
            self._send(200, good)
        elif what == "one choice":
            self._send(200, json.dumps(answer({**body, "n": 1})).encode())
        elif what == "cut off":  # the connection closes in the middle of the body
            self._send(200, good[: len(good) // 2], length=len(good))
            self._close()
        elif what == "half a body":  # and the length is that of the half
            self._send(200, good[: len(good) // 2])
        elif what == "reset":
            self._close()
        elif what == "hang":
            time.sleep(5)
            self._close()
        elif what == "drip":  # a byte now and then, which never lets a read time out
            self.send_response(200)
            self.send_header("Content-Length", str(len(good)))
            self.end_headers()
            for byte in good:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
        elif what == "garbage":
            self._send(200, b"\xff\xfe\x00 not json {{{")
        elif what == "html":
            self._send(200, b"<html><body>Bad gateway, but nicely</body></html>")
        elif what == "no choices":
            self._send(200, json.dumps({"error": {"message": "overloaded"}}).encode())
        elif what == "empty choices":
            self._send(200, json.dumps({"choices": []}).encode())
        elif what == "wrong types":
            self._send(200, json.dumps({"choices": [{"message": {"content": 3}, "text": 3}]}).encode())
        elif what == "wait":
            self._send(429, b'{"error": "slow down"}', retry_after="1")
        elif what.startswith("say "):  # a status and an error
            _, status, error = what.split(" ", 2)
            self._send(int(status), json.dumps({"error": error}).encode())
        elif what == "echo key":
            self._send(401, json.dumps({"error": f"wrong key: {self.headers['Authorization']}"}).encode())
        elif what == "echo key, 500":
            self._send(500, json.dumps({"error": f"for {self.headers['Authorization']}"}).encode())
        else:
            self._send(int(what), json.dumps({"error": {"message": f"as you like: {what}"}}).encode())

    def _send(self, status: int, content: bytes, length: int | None = None, retry_after: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content) if length is None else length))
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def _close(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """A good answer to a request. One in five is cut off by its length."""
    choices = []
    for index in range(body.get("n", 1)):
        number = choice_number(body, index)
        words = [WORDS[(number >> (4 * place)) % len(WORDS)] for place in range(1 + number % 4)]
        choice: dict[str, Any] = {"index": index, "finish_reason": "length" if number % 5 == 0 else "stop"}
        if "messages" in body:
            choice["message"] = {"role": "assistant", "content": " ".join(words)}
            if body.get("logprobs"):
                choice["logprobs"] = {"content": [{"token": word, "logprob": -0.5} for word in words]}
        else:
            choice["text"] = " ".join(words)
            if body.get("logprobs") is not None:
                choice["logprobs"] = {"token_logprobs": [-0.25 for _ in words], "tokens": words}
        choices.append(choice)
    return {"model": body["model"], "choices": choices, "usage": {"completion_tokens": 7}}


def choice_number(body: dict[str, Any], index: int) -> int:
    """What a choice depends on."""
    asked = json.dumps([body.get("messages", body.get("prompt")), body.get("seed"), index])
    return int.from_bytes(hashlib.sha256(asked.encode()).digest()[:6])


@contextmanager
def serve(port: int = 0) -> Iterator[Server]:
    """A running server."""
    with Server(port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
