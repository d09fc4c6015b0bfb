"""The tokenizer's preparation, and the encoder: token ids of a prompt and its responses, and which are trained."""

import json
import logging
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Any, get_args

from mrt_plugin.encoding.messages import EncodingError, Message, prompt_messages, response_messages, roles
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.encoding.spans import Conversation, Span
from mrt_plugin.options import PromptFormat, TurnContext

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Tools = Sequence[dict[str, Any]] | str | None
"""Tool schemas, or their JSON."""

Turns = str | Sequence[Message]


def check_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> None:
    if not tokenizer.is_fast:
        raise EncodingError(
            f"{type(tokenizer).__name__} is a slow tokenizer, which gives no character offsets. Load the fast one: "
            "AutoTokenizer.from_pretrained(..., use_fast=True), after converting it if there is no tokenizer.json."
        )


def prepare_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """Make EOS the pad token, in place, if there is none. Labels are marked before padding, so EOS is still trained
    at the end of responses, and never as padding."""
    check_tokenizer(tokenizer)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise EncodingError(
                "The tokenizer has neither a pad nor an EOS token: set tokenizer.pad_token and tokenizer.eos_token."
            )
        tokenizer.pad_token = tokenizer.eos_token
        logger.info("The tokenizer has no pad token: its EOS %r pads. EOS stays trained.", tokenizer.eos_token)
    return tokenizer


def special_token_texts(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the texts of all special tokens, the longest first."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(added | set(tokenizer.all_special_tokens), key=lambda text: (-len(text), text))


def merge_continued(sequences: Sequence[Pair]) -> list[Pair]:
    """Merge each sequence that is the beginning of the next one with it; what either trains is trained.

    Example:

    >>> merge_continued([Pair([5, 6], [False, True]), Pair([5, 6, 7, 8], [False, False, False, True])])
    [Pair(input_ids=[5, 6, 7, 8], trained=[False, True, False, True])]
    """
    merged = list(sequences[:1])
    for pair in sequences[1:]:
        before = merged[-1]
        length = len(before.input_ids)
        if pair.input_ids[:length] == before.input_ids:
            both = [own or earlier for own, earlier in zip(pair.trained, before.trained, strict=False)]
            merged[-1] = Pair(pair.input_ids, [*both, *pair.trained[length:]])
        else:
            merged.append(pair)
    return merged


@dataclass
class Encoder:
    """Encodes pairs of a prompt and a response. Only the assistant's turns of the response are trained.

    In chat form, the tokenizer's chat template renders the conversation once, and the text is tokenized unchanged. The
    trained tokens are those of the assistant's turns in that text, including their end tokens. Assistant turns of the
    prompt, tool results and later user turns are not trained, nor is whitespace after an end token (TRL trains it). A
    last turn that the template does not close gets the tokenizer's EOS.

    In plain form, prompt and response are joined and tokenized together. The tokenizer's special tokens are kept, but
    never a second BOS. One EOS at the end is trained.

    A pad token that equals EOS is safe: labels never come from comparing ids. Nothing is truncated. A token that
    begins in the prompt and ends in the response is trained.

    Args:
        tokenizer: a fast tokenizer.
        prompt_format: `chat`, `plain`, or `auto`: chat where the tokenizer has a template. Messages are always chat.
        chat_template_kwargs: passed to the template, for example `{"enable_thinking": False}`.

    Raises:
        EncodingError: for a slow tokenizer, an unknown format, or `chat` without a template.

    Example:

    ```python
    from mrt_plugin.encoding import Encoder

    encoder = Encoder(tokenizer)
    pairs = encoder.encode_group("Name a fruit.", ["An apple.", "A pear."])
    ids = [token for token, trained in zip(pairs[0].input_ids, pairs[0].trained) if trained]
    tokenizer.decode(ids)  # 'An apple.<|im_end|>'
    ```
    """

    tokenizer: "PreTrainedTokenizerBase"
    prompt_format: PromptFormat = "auto"
    chat_template_kwargs: dict[str, Any] | None = None
    _special: list[str] = field(init=False, repr=False)
    _warned: set[str] = field(init=False, repr=False, default_factory=set)

    def __post_init__(self) -> None:
        if self.prompt_format not in get_args(PromptFormat):
            known = ", ".join(get_args(PromptFormat))
            raise EncodingError(f"prompt_format={self.prompt_format!r} is unknown: choose one of {known}.")
        check_tokenizer(self.tokenizer)
        if self.prompt_format == "chat":
            self._need_template("prompt_format='chat'")
        self._special = special_token_texts(self.tokenizer)

    def __getstate__(self) -> dict[str, Any]:
        # Logged topics are not part of the encoder's identity: datasets computes its fingerprint from the pickle.
        return {**self.__dict__, "_warned": set()}

    def encode(self, prompt: Turns, response: Turns, *, tools: Tools = None) -> Pair:
        """Encode one pair. For several responses to one prompt, `encode_group` is faster."""
        return self.encode_group(prompt, [response], tools=tools)[0]

    def encode_group(self, prompt: Turns, responses: Sequence[Turns], *, tools: Tools = None) -> list[Pair]:
        """Encode a prompt with each of its responses, and return one pair per response, with all turns trained.

        Raises:
            EncodingError: if the messages are malformed, or the template cannot render them or omits their text.
        """
        return [pair for (pair,) in self.encode_responses(prompt, responses, "conversation", tools=tools)]

    def encode_responses(
        self,
        prompt: Turns,
        responses: Sequence[Turns],
        turn_context: TurnContext = "inference",
        *,
        tools: Tools = None,
    ) -> list[list[Pair]]:
        """Encode a prompt with each of its responses, and return the sequences that train each response.

        With `conversation`, a response has one sequence with all its turns. With `inference`, each assistant turn is
        trained after the messages before it, as the template renders these when the model is asked for that turn. A
        sequence that is the beginning of the next one is merged with it. A template that keeps all earlier text
        therefore gives the same sequence in both.

        Raises:
            EncodingError: if the messages are malformed, or the template cannot render them or omits their text.

        Example:

        ```python
        from mrt_plugin.encoding import Encoder

        response = [
            {"role": "assistant", "content": "<think>Red ones.</think>An apple."},
            {"role": "user", "content": "Another?"},
            {"role": "assistant", "content": "<think>Green ones.</think>A pear."},
        ]
        (turns,) = Encoder(tokenizer).encode_responses("Name a fruit.", [response])
        len(turns)  # 2 with a template that drops earlier thinking
        ```
        """
        if not responses:
            return []
        try:
            if self._is_chat(prompt, responses):
                return self._encode_chat(prompt, responses, tools, turn_context)
            return [[pair] for pair in self._encode_plain(str(prompt), [str(response) for response in responses])]
        except EncodingError as error:
            text = repr(prompt)
            text = text[:120] + "..." * (len(text) > 120)
            raise EncodingError(f"{error} (In the group of the prompt {text})") from error.__cause__

    def encode_prompt(self, prompt: Turns, *, tools: Tools = None) -> list[int]:
        """Return the tokens from which a model generates its answer: the prompt and the assistant turn's header."""
        if self._is_chat(prompt, []):
            text = self._render(prompt_messages(prompt), True, tools=tools)
            return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        ids = self._without_second_bos(list(self.tokenizer(str(prompt), verbose=False)["input_ids"]))
        added_eos = len(ids) >= 2 and ids[-1] == self.tokenizer.eos_token_id
        return ids[:-1] if added_eos and not str(prompt).endswith(str(self.tokenizer.eos_token)) else ids

    def _is_chat(self, prompt: Any, responses: Sequence[Any]) -> bool:
        has_messages = not all(isinstance(value, str) for value in (prompt, *responses))
        if self.prompt_format == "plain" and has_messages:
            raise EncodingError(
                "prompt_format='plain' takes strings, but this group has messages. Use prompt_format='auto' or text."
            )
        if has_messages:
            self._need_template("The data holds messages")
        return self.prompt_format != "plain" and bool(self.tokenizer.chat_template)

    def _need_template(self, what: str) -> None:
        if not self.tokenizer.chat_template:
            raise EncodingError(
                f"{what}, but the tokenizer has no chat template. Set tokenizer.chat_template (TRL: "
                "chat_template_path; Axolotl: chat_template), or give strings with prompt_format='plain'."
            )

    def _encode_chat(
        self, prompt: Turns, responses: Sequence[Turns], tools: Tools, turn_context: TurnContext
    ) -> list[list[Pair]]:
        render = partial(self._render, tools=tools)
        asked = prompt_messages(prompt)
        prompt_text = render(asked, True)
        texts, spans, owners = [], [], []
        for number, response in enumerate(responses):
            messages = [*asked, *response_messages(response)]
            for role, following in pairwise(message["role"] for message in messages):
                if role == following != "tool":
                    note = f"Some conversations have two {role!r} messages in a row; they are kept as they are."
                    self._warn("repeated roles", note)
            said = [place for place in range(len(asked), len(messages)) if messages[place]["role"] == "assistant"]
            by_turn = turn_context == "inference"
            for last in said if by_turn else said[-1:]:
                first, through = last if by_turn else len(asked), messages[: last + 1]
                before = prompt_text if first == len(asked) else render(messages[:first], True)
                conversation = Conversation(through, render(through, False), render, self._special, self._warn)
                conversation = conversation.as_asked(before) if by_turn else conversation
                texts.append(conversation.text)
                spans.append(conversation.find_spans(first, before))
                owners.append(number)
        found: list[list[Pair]] = [[] for _ in responses]
        encoded = self._tokenize(texts, add_special_tokens=False)
        for (ids, offsets), marked, number in zip(encoded, spans, owners, strict=True):
            found[number].append(self._mark_spans(ids, offsets, marked))
        return [merge_continued(sequences) for sequences in found]

    def _tokenize(self, texts: list[str], **options: Any) -> Iterable[tuple[list[int], list[tuple[int, int]]]]:
        """Return the token ids of each text, and the characters of each token."""
        options |= {"return_offsets_mapping": True, "return_attention_mask": False, "verbose": False}
        encoded = self.tokenizer(texts, **options)
        return zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)

    def _render(self, messages: Sequence[Message], generation_prompt: bool, *, tools: Tools) -> str:
        schemas: Any = json.loads(tools) if isinstance(tools, str) else tools
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages),
                    tools=schemas or None,  # some templates write tool text for an empty list
                    add_generation_prompt=generation_prompt,
                    tokenize=False,
                    **(self.chat_template_kwargs or {}),
                )
            )
        except Exception as error:  # a template is a program: it may raise any error
            raise EncodingError(
                f"The chat template cannot render a conversation with the roles {roles(messages)}: "
                f"{type(error).__name__}: {error}. Some templates need alternating user and assistant turns or know "
                "no system or tool role: change the messages, or set another chat template."
            ) from error

    def _mark_spans(self, input_ids: list[int], offsets: list[tuple[int, int]], spans: Sequence[Span]) -> Pair:
        """Mark the tokens whose characters are in a span, and those that begin before a span and end in it."""
        trained = [False] * len(input_ids)
        for span in spans:
            begin, end = (bisect_right(offsets, place, key=itemgetter(1)) for place in (span.start, span.stop))
            trained[begin:end] = [True] * (end - begin)
        if spans[-1].closed:
            return Pair(input_ids, trained)
        if self.tokenizer.eos_token_id is None:
            self._warn("no end", "Neither the chat template nor the tokenizer has a token that ends a response.")
            return Pair(input_ids, trained)
        note = "The chat template does not end an assistant's turn with a special token: "
        self._warn("eos added", f"{note}{self.tokenizer.eos_token!r} is added after the last one and trained.")
        return Pair([*input_ids, self.tokenizer.eos_token_id], [*trained, True])

    def _encode_plain(self, prompt: str, responses: Sequence[str]) -> list[Pair]:
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise EncodingError("Plain text needs an EOS token to end a response: set tokenizer.eos_token.")
        if not all(response.strip() for response in responses):
            raise EncodingError("A response is empty: there is nothing to train on. Drop it.")
        pairs = []
        for ids, offsets in self._tokenize([prompt + response for response in responses]):
            begin = next((index for index, (_, stop) in enumerate(offsets) if stop > len(prompt)), None)
            if begin is None:
                raise EncodingError("The tokenizer turns a response into no tokens at all. Drop it.")
            kept = self._without_second_bos(ids) if begin >= 2 else ids
            begin -= len(ids) - len(kept)
            if len(kept) >= 2 and kept[-1] == kept[-2] == eos:
                kept = kept[:-1]
            if kept[-1] != eos:
                kept = [*kept, eos]
            pairs.append(Pair(kept, [False] * begin + [True] * (len(kept) - begin)))
        return pairs

    def _without_second_bos(self, ids: list[int]) -> list[int]:
        """Drop a BOS that the tokenizer added in front of the text's own."""
        return ids[1:] if len(ids) >= 2 and ids[0] == ids[1] == self.tokenizer.bos_token_id else ids

    def _warn(self, topic: str, message: str) -> None:
        """Log once per encoder and topic."""
        if topic not in self._warned:
            self._warned.add(topic)
            logger.warning(message)
