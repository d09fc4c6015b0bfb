"""Formats with conversations as trees of messages: OpenAssistant's OASST1 and OASST2."""

from collections.abc import Iterator
from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from mrt_plugin.groups.adapters.adapter import Converted, LeftOut, Mismatch, adapter
from mrt_plugin.groups.messages import Message, has_text

ROLES = {"prompter": "user", "assistant": "assistant"}


class TreeMessage(TypedDict):
    message_id: str
    parent_id: NotRequired[str | None]
    message_tree_id: str
    text: str
    role: Literal["prompter", "assistant"]
    lang: NotRequired[str | None]
    rank: NotRequired[float | None]
    deleted: NotRequired[bool | None]
    review_result: NotRequired[bool | None]


@adapter(together="message_tree_id", prompt="text", responses="text", scores="rank")
def oasst2(
    rows: list[TreeMessage],
    *,
    lang: str = "",
    unranked: Literal["tie", "drop"] = "tie",
    min_replies: Annotated[int, Field(ge=1)] = 1,
) -> Converted:
    """Yield a group for each message of the prompter that has replies: the turns up to it, and the replies.

    A reply's score is the number of ranks below it. Where no reply is ranked, all scores are 0. The groups of a tree
    come in depth-first order, so that groups with most turns in common are neighbours.
    """
    replies: dict[str | None, list[TreeMessage]] = {}
    for row in rows:
        replies.setdefault(row.get("parent_id"), []).append(row)
    if lang and any(root.get("lang") != lang for root in replies.get(None, [])):
        yield from [LeftOut(f"messages of conversations that do not start in lang={lang}")] * len(rows)
        return
    reached = 0
    for path, message in _walk(replies):
        reached += 1
        pool = [reply for reply in replies.get(message["message_id"], []) if _is_usable(reply)]
        if message["role"] == "assistant" or not pool:
            continue
        ranked = [reply for reply in pool if reply.get("rank") is not None]
        if ranked:
            yield from [LeftOut("replies without a rank beside ranked ones")] * (len(pool) - len(ranked))
            pool = ranked
        if len(pool) < min_replies:
            yield LeftOut(f"branches with fewer than min_replies={min_replies} replies")
        elif not ranked and unranked == "drop":
            yield LeftOut("branches without ranks")
        else:
            ranks = [reply.get("rank") or 0.0 for reply in pool]
            scores = [max(ranks) - rank for rank in ranks]
            responses = [reply["text"] for reply in pool]
            yield {"id": message["message_id"], "prompt": path, "responses": responses, "scores": scores}
    what = "messages that are deleted, rejected in review or empty, or that are below one of these or a missing one"
    yield from [LeftOut(what)] * (len(rows) - reached)


def _walk(replies: dict[str | None, list[TreeMessage]]) -> Iterator[tuple[list[Message], TreeMessage]]:
    """Yield each usable message of a tree, depth first, with the turns from the root up to it."""
    waiting: list[tuple[list[Message], TreeMessage]] = [([], root) for root in reversed(replies.get(None, []))]
    while waiting:
        before, message = waiting.pop()
        if not _is_usable(message):
            continue
        if message["role"] != ("assistant" if before and before[-1]["role"] == "user" else "prompter"):
            raise Mismatch("role", f"prompter and assistant do not alternate at message {message['message_id']!r}.")
        path = [*before, {"role": ROLES[message["role"]], "content": message["text"]}]
        yield path, message
        waiting += [(path, reply) for reply in reversed(replies.get(message["message_id"], []))]


def _is_usable(message: TreeMessage) -> bool:
    return not message.get("deleted") and message.get("review_result") is not False and has_text(message["text"])
