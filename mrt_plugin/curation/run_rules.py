"""Rules that depend on the run, not on the text alone: `token_length`, `template` and `check`."""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from mrt_plugin.curation.rule import Decision, DropOrFlag, GroupRule, GroupView, Tools
from mrt_plugin.encoding import Encoder, EncodingError
from mrt_plugin.extension import extension_files, load_function
from mrt_plugin.groups.messages import prompt_text
from mrt_plugin.options import PromptFormat, TurnContext


class TokenLength(GroupRule):
    """Drops groups whose prompt is too short or too long, and responses that are, before selection. Lengths are in
    tokens of the run's tokenizer, without the chat template. Without a tokenizer they are estimated as UTF-8 bytes
    / 4, and the ledger says so. The defaults fit a context of 4,096 tokens.
    """

    prompt_min: int = Field(1, ge=0, description="The fewest tokens of a prompt.")
    prompt_max: int | None = Field(2048, ge=1, description="The most tokens of a prompt.")
    response_min: int = Field(1, ge=0, description="The fewest tokens of a response.")
    response_max: int | None = Field(2048, ge=1, description="The most tokens of a response.")

    def judge(self, group: GroupView, tools: Tools) -> Iterable[Decision]:
        note = "" if tools.tokenizer is not None else " (estimated)"
        prompt, *lengths = token_counts([prompt_text(group.prompt), *group.texts], tools.tokenizer)
        measured = [("prompt", prompt, self.prompt_min, self.prompt_max)]
        measured += [("response", length, self.response_min, self.response_max) for length in lengths]
        for number, (part, length, low, high) in enumerate(measured):
            if length < low or (high is not None and length > high):
                reason = f"{part} too {'short' if length < low else 'long'}{note}"
                yield Decision("drop", reason, number - 1 if number else None)
                if not number:
                    return


def token_counts(texts: list[str], tokenizer: Any) -> list[int]:
    """Return the number of tokens of each text, estimated as UTF-8 bytes / 4 without a tokenizer."""
    if tokenizer is None:
        return [-(-len(text.encode()) // 4) for text in texts]
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


class Template(GroupRule):
    """Drops responses that the run's tokenizer and chat template cannot encode, for instance because the template
    omits their thinking or tool calls, and those without any token to train on. Training refuses such data. Needs
    a tokenizer, and takes as long as encoding.
    """

    prompt_format: PromptFormat = Field("auto", description="The training option of the same name.")
    turn_context: TurnContext = Field("inference", description="The training option of the same name.")

    def check_tools(self, tools: Tools) -> None:
        if tools.tokenizer is None:
            raise ValueError("curation rule `template` needs the run's tokenizer: give one (`--tokenizer NAME`).")

    def judge(self, group: GroupView, tools: Tools) -> Iterable[Decision]:
        encoder = Encoder(tools.tokenizer, prompt_format=self.prompt_format)
        for index, response in enumerate(group.responses):
            try:
                (sequences,) = encoder.encode_responses(group.prompt, [response], self.turn_context)
            except EncodingError:
                yield Decision("drop", "the template does not render it", index)
            else:
                if not all(pair.trained_length for pair in sequences):
                    yield Decision("drop", "nothing to train on", index)


class Check(GroupRule):
    """Drops the responses that your function does not accept. It is called as `function(prompt, response)`, with
    both as in the data, and returns True or False, or a string with the problem (empty for none). If no response
    of a group passes, the group is dropped.
    """

    function: str | Callable[[Any, Any], bool | str] = Field(
        description="`package.module:function`, `path/to/file.py:function`, or in Python the function itself."
    )
    action: DropOrFlag = Field("drop", description="`drop` or `flag`.")
    keep_one: bool = Field(False, description="Flag instead of dropping if no response of a group passes.")

    @field_validator("function")
    @classmethod
    def _find(cls, function: Any) -> Any:
        if isinstance(function, str):
            load_function(function)
        return function

    def reads(self) -> list[Path]:
        if isinstance(self.function, str):
            return extension_files(self.function)
        file = inspect.getsourcefile(self.function)
        return [Path(file)] if file else []

    def judge(self, group: GroupView, tools: Tools) -> Iterable[Decision]:
        function = load_function(self.function) if isinstance(self.function, str) else self.function
        failed = {}
        for index, response in enumerate(group.responses):
            try:
                answer = function(group.prompt, response)
            except Exception as problem:
                problem.add_note(f"The check was looking at response {index} of group {group.id}.")
                raise
            if answer if isinstance(answer, str) else not answer:
                failed[index] = answer or "did not pass"
        spare = self.keep_one and len(failed) == len(group.responses)
        for index, reason in failed.items():
            yield Decision("flag" if spare else self.action, str(reason), index)
