"""Locate the assistant's turns in a rendered conversation. The prompt rendered alone is not its prefix for templates
that drop or add think blocks, move the system text, or end a generation prompt with `<think>`."""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count

from mrt_plugin.encoding.messages import (
    REASONING,
    THINK_TAG,
    EncodingError,
    Message,
    called_functions,
    content_text,
    marked,
)


@dataclass(frozen=True)
class Span:
    """Characters `start` to `stop` of a rendered conversation: the text of one turn that the model is trained on."""

    start: int
    stop: int
    closed: bool
    """Whether it ends with a special token, where generation stops."""


class _Marks:
    """Generates new words whose stem does not occur in `text`."""

    def __init__(self, text: str, name: str = "turn") -> None:
        self.stem = next(stem for stem in (f"{name}{number}x" for number in count(7919)) if stem not in text)
        self.numbers = count(1)

    def __call__(self) -> str:
        return f"{self.stem}{next(self.numbers)}e"

    def around(self, text: str) -> tuple[str, str]:
        """Return the text before the first mark and the text after the last."""
        return text.partition(self.stem)[0], re.split(f"{self.stem}\\d+e", text)[-1]


@dataclass(frozen=True)
class Conversation:
    """A rendered conversation, in which the assistant's turns are located."""

    messages: Sequence[Message]
    text: str
    render: Callable[[Sequence[Message], bool], str]
    """Renders other messages the same way. The flag adds the generation prompt."""
    special_tokens: Sequence[str]
    warn: Callable[[str, str], None]
    """Logs a message once per topic."""

    def find_spans(self, first: int, prompt_text: str) -> list[Span]:
        """Return the spans of the assistant's turns from message `first` on, each from its header to its end token.
        `prompt_text` is `messages[:first]` rendered with the generation prompt."""
        spans = []
        last = len(self.messages) - 1
        for index in range(first, len(self.messages)):
            if self.messages[index]["role"] != "assistant":
                continue
            before = prompt_text if index == first else self.render(self.messages[:index], True)
            through = self.text if index == last else self.render(self.messages[: index + 1], False)
            content = None
            if self.text.startswith(before):
                start = len(before)
            else:
                agree = _common_length(before, self.text)
                remedy = (
                    "The template's options (`chat_template_kwargs`, for example enable_thinking) can often make the "
                    "two agree."
                    if index == last
                    else "turn_context: inference trains each turn after what inference has."
                )
                self.warn(
                    "context" if index == last else "context of earlier turns",
                    "The chat template renders what comes before a response differently with the response than alone, "
                    f"as at inference: {_short(before[agree:])} became {_short(self.text[agree:])}. So the model is "
                    f"trained after a context that inference does not have. {remedy}",
                )
                content = self._locate(index)
                start = self._start_before(content[0], index)[0]
            if self.text.startswith(through):  # the turn ends there, or with its special token if that comes last
                stop = start + len(self.text[start : len(through)].rstrip())
                closed = self.text.endswith(tuple(self.special_tokens), start, stop)
                span = Span(start, stop if closed else len(through), closed)
            else:
                span = self._close_after(start, *(content or self._locate(index))[1:])
            self._check_turn(self.messages[index], self.text[span.start : span.stop], index == last)
            spans.append(span)
        return spans

    def as_asked(self, prompt_text: str) -> "Conversation":
        """Return the conversation with its last turn after `prompt_text`, the messages before it rendered for
        generation. Some templates change these once the turn follows: GPT-OSS drops the thinking before a tool call.

        If the turn's header is another one than generation begins with, the conversation is returned unchanged.
        """
        if self.text.startswith(prompt_text):
            return self
        index = len(self.messages) - 1
        start, asked = self._start_before(self._locate(index)[0], index)
        return replace(self, text=prompt_text + self.text[start:]) if asked else self

    def _locate(self, index: int) -> tuple[int, int, str]:
        """Return where a message's content starts and stops, and what the template writes after it in a last turn."""
        marks = _Marks(self.text)
        turn = marked(self.messages[index], marks)
        twin = self.render([*self.messages[:index], turn, *self.messages[index + 1 :]], False)
        before, after = marks.around(twin)
        fits = self.text.startswith(before) and self.text.endswith(after) and len(before + after) <= len(self.text)
        if marks.stem in twin and fits:
            closing = marks.around(self.render([*self.messages[:index], turn], False))[1]
            return len(before), len(self.text) - len(after), closing
        raise EncodingError(
            f"The assistant's turn in message {index} cannot be located in the rendered conversation: the chat "
            "template leaves it out, or renders other parts differently depending on what it says. Use a chat "
            "template that renders each turn independently of the words in it."
        )

    def _start_before(self, content: int, index: int) -> tuple[int, bool]:
        """Return the span's start, after the generation prompt's common part here, and whether that part is complete.
        If the two cannot be compared, the content's start."""
        if index == 0:
            return content, False
        asked, said = _Marks(self.text, "asked"), _Marks(self.text)
        known = [*self.messages[: index - 1], marked(self.messages[index - 1], asked)]
        prompt = self.render(known, True)
        turn = marked(self.messages[index], said)
        conversation = self.render([*known, turn, *self.messages[index + 1 :]], False)
        if not (asked.stem in prompt and asked.stem in conversation and said.stem in conversation):
            return content, False
        header = asked.around(prompt)[1]
        frame = asked.around(said.around(conversation)[0])[1]
        if not self.text.endswith(frame, 0, content):
            return content, False
        common = _common_length(header, frame)
        return content - (len(frame) - common), common == len(header)

    def _close_after(self, start: int, content_stop: int, closing: str) -> Span:
        """Return the span of a turn up to the text that the template writes after a last turn, or to another end token
        (GPT-OSS)."""
        special = re.compile("|".join(re.escape(token) for token in self.special_tokens) or "(?!)")
        common = content_stop + _common_length(closing, self.text[content_stop:])
        shared = list(special.finditer(self.text, content_stop, common))
        if shared:
            return Span(start, shared[-1].end(), True)
        other = special.search(self.text, content_stop) if special.search(closing) else None
        return Span(start, common, False) if other is None else Span(start, other.end(), True)

    def _check_turn(self, message: Message, rendered: str, final: bool) -> None:
        """Refuse a turn if the template omitted some of its text."""
        content = content_text(message)
        if not _occurs(content, rendered):
            if not _occurs(THINK_TAG.split(content)[-1], rendered):
                raise EncodingError(
                    f"The chat template does not render what the assistant says: {_short(content)} is not in its "
                    f"turn, {_short(rendered)}. Use a chat template that renders it unchanged."
                )
            if final:
                raise EncodingError(
                    f"The chat template drops the thinking from the response {_short(content)}, so it would not be "
                    "trained. Remove <think>...</think> from the responses, move it to `reasoning_content` if the "
                    "template renders that, or set a chat template that keeps it."
                )
            note = "The chat template drops the thinking of a response's earlier turns: it is not trained."
            self.warn("old thinking", note)
        for key in REASONING:
            if isinstance(message.get(key), str) and not _occurs(message[key], rendered):
                note = f"The chat template does not render the {key!r} of some assistant turns: it is not trained."
                self.warn(key, f"{note} Set a chat template that renders it if it should be.")
        for name in called_functions(message):
            if not _occurs(name, rendered):
                raise EncodingError(
                    f"The chat template does not render the call of {name!r} in an assistant's turn, so it would not "
                    "be trained. Set a chat template that knows `tool_calls`, or write the call into `content`."
                )


def _occurs(words: str, rendered: str) -> bool:
    """Return whether `rendered` contains the texts between the think tags of `words`, in order, without whitespace."""
    if words.strip() in rendered:
        return True
    rest = "".join(rendered.split())
    for piece in THINK_TAG.sub("\n", words).split("\n"):
        wanted = "".join(piece.split())
        if wanted not in rest:
            return False
        rest = rest.partition(wanted)[2] if wanted else rest
    return True


def _common_length(first: str, second: str) -> int:
    """Return the length of the longest common prefix. Bisection is fast on long prompts."""
    lengths = range(1, min(len(first), len(second)) + 1)
    return bisect_left(lengths, True, key=lambda length: not first.startswith(second[:length]))


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
