"""Formats with a conversation as a list of turns: ShareGPT and HelpSteer3."""

from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from mrt_plugin.groups.adapters.adapter import Converted, LeftOut, Mismatch, adapter
from mrt_plugin.groups.messages import Message, clean_messages, kind

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""The speakers of ShareGPT files, and the roles that they have in a chat template."""

UNSOUND = "conversations that do not alternate, that have an empty turn, or that end without an answer"

Turn = TypedDict("Turn", {"from": str, "value": str})


class ChatTurn(TypedDict):
    role: str
    content: str


class ShareGPTRow(TypedDict):
    conversations: list[Turn | ChatTurn]
    system: NotRequired[str | None]
    score: NotRequired[float | None]
    weight: NotRequired[float | None]


@adapter(prompt="conversations", responses="conversations", scores="score", weights="weight")
def sharegpt(row: ShareGPTRow, *, user: str = "", assistant: str = "") -> Converted:
    """Yield one response: the turns after the last of the user. `user` and `assistant` name further speakers."""
    turns = as_messages("conversations", row["conversations"], {user: "user", assistant: "assistant"})
    system = (row.get("system") or "").strip()
    if system and turns and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": system}, *turns]
    end = max((at for at, turn in enumerate(turns, start=1) if turn["role"] == "user"), default=0)
    prompt, response = turns[:end], turns[end:]
    if not prompt or not response or not is_sound_chat(prompt, response):
        yield LeftOut(UNSOUND)
        return
    score, weight = row.get("score"), row.get("weight")
    yield {"prompt": prompt, "completion": response, "score": score, "weight": weight}


def as_messages(name: str, turns: Any, more: dict[str, str] | None = None) -> list[Message]:
    """Return turns with `from` and `value` as messages. Messages stay as they are. `more` has further speakers."""
    if not isinstance(turns, list):
        raise Mismatch(name.split(".")[0], f"`{name}` is {kind(turns)}; it must be a list of turns.")
    known = ROLES | {speaker: role for speaker, role in (more or {}).items() if speaker}
    messages = []
    for number, turn in enumerate(turns):
        if isinstance(turn, dict) and "from" in turn and "role" not in turn:
            if turn["from"] not in known:
                what = f"`{name}[{number}]` is from {turn['from']!r}; known are {', '.join(known)}."
                remedy = f"Name the speaker's role: source='sharegpt:assistant={turn['from']}' (or user=)."
                raise Mismatch(name.split(".")[0], f"{what} {remedy}")
            others = {key: value for key, value in turn.items() if key not in ("from", "value")}
            turn = {"role": known[turn["from"]], "content": turn.get("value"), **others}
        messages.append(turn)
    return messages


def is_sound_chat(prompt: list[Message], response: list[Message] | None = None) -> bool:
    """Return whether a prompt, and its response, alternate as chat templates need it, without an empty turn."""
    complaints: list[str] = []
    clean_messages(prompt, "prompt", complaints.append)
    if response is not None:
        clean_messages(response, "response", complaints.append)
    return not complaints


class HelpSteer3Row(TypedDict):
    context: list[ChatTurn]
    response1: str
    response2: str
    overall_preference: Annotated[float, Field(ge=-3, le=3)]


@adapter(prompt="context", responses="response1", scores="overall_preference")
def helpsteer3(row: HelpSteer3Row) -> Converted:
    """Yield one group of two. The better response scores its preference, up to 3, and the other scores 0."""
    prompt: list[Any] = list(row["context"])
    if not is_sound_chat(prompt):
        yield LeftOut("contexts that do not alternate, that have an empty turn, or that do not end with the user's")
        return
    second = row["overall_preference"]  # negative if the first is better
    scores = [max(0.0, -second), max(0.0, second)]
    yield {"prompt": prompt, "responses": [row["response1"], row["response2"]], "scores": scores}
