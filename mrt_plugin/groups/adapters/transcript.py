"""Conversations in one text, as in HH-RLHF and Nectar: `\\n\\nHuman: ...\\n\\nAssistant: ...`."""

import re

from mrt_plugin.groups.messages import Message, has_text

TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


def parse_transcript(text: str) -> list[Message] | None:
    """Return the turns of a transcript, with outer white space removed.

    Return None if the human is not first or the turns do not alternate.

    Example:

    >>> parse_transcript("\\n\\nHuman: 2 + 2?\\n\\nAssistant: 4")
    [{'role': 'user', 'content': '2 + 2?'}, {'role': 'assistant', 'content': '4'}]
    """
    before, *parts = TURN.split(text)
    if before.strip() or not parts:
        return None
    turns = [
        {"role": ROLES[speaker], "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    expected = ["user", "assistant"] * len(turns)
    if [turn["role"] for turn in turns] != expected[: len(turns)]:
        return None
    return turns


def has_empty_turn(turns: list[Message]) -> bool:
    """Return whether a turn is empty. Chat templates cannot render empty turns sensibly."""
    return not all(has_text(turn["content"]) for turn in turns)
