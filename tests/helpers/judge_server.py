"""A real HTTP server on loopback that judges: honestly, by position or by length, or that answers nonsense."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import helpers.endpoint_server as endpoint_server
from helpers.endpoint_server import Server, serve

Opinion = Callable[[str, list[str]], str]
"""From the prompt and the one or two responses of a question to the answer's text."""

SECTION = r"<{0}>\n(.*?)\n</{0}>"


def read_question(question: str) -> tuple[str, list[str]]:
    """The prompt and the responses of a question as the package's own files ask it."""
    (prompt,) = re.findall(SECTION.format("prompt"), question, re.DOTALL)
    names = ("response",) if "<response>" in question else ("response A", "response B")
    return prompt, [re.findall(SECTION.format(name), question, re.DOTALL)[0] for name in names]


@contextmanager
def serve_judge(opinion: Opinion) -> Iterator[Server]:
    """A running judge of that opinion. `server.asked` has the requests."""

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        text = opinion(*read_question(body["messages"][0]["content"]))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        return {"model": body["model"], "choices": [choice] * body.get("n", 1), "usage": {"completion_tokens": 5}}

    before = endpoint_server.answer
    endpoint_server.answer = answer
    try:
        with serve() as server:
            server.models = ["judge"]
            yield server
    finally:
        endpoint_server.answer = before
