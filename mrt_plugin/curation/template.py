"""`template`: responses that the run's chat template cannot show to the model."""

from collections.abc import Iterable
from typing import ClassVar

from pydantic import Field

from mrt_plugin.curation.rule import Group, GroupRule, Tools, Verdict
from mrt_plugin.encoding import Encoder, EncodingError
from mrt_plugin.options import PromptFormat


class Template(GroupRule):
    """Drops responses that cannot be encoded with the run's tokenizer and chat template, for instance because the
    template leaves out their thinking or their tool calls, or leave nothing to train on. Training refuses such data;
    this rule drops it and counts it. Needs a tokenizer, and costs as much as encoding.
    """

    name: ClassVar[str] = "template"

    prompt_format: PromptFormat = Field("auto", description="As the training option of that name.")

    def check_tools(self, tools: Tools) -> None:
        """A tokenizer is needed."""
        if tools.tokenizer is None:
            raise ValueError("curation rule `template` needs the run's tokenizer: give one (`--tokenizer NAME`).")

    def judge(self, group: Group, tools: Tools) -> Iterable[Verdict]:
        """Encode each pair."""
        encoder = Encoder(tools.tokenizer, prompt_format=self.prompt_format)
        for index, response in enumerate(group.responses):
            try:
                pair = encoder.encode(group.prompt, response)
            except EncodingError:
                yield Verdict("drop", "the template does not render it", index)
            else:
                if not pair.trained_length:
                    yield Verdict("drop", "nothing to train on", index)
