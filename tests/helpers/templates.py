"""Chat templates of the common families, in our own words: short, but with the habits that make the real ones hard.

Each `Family` says which tokens the template relies on, so that `tiny.tokenizer(family=...)` builds one that fits.
"""

from dataclasses import dataclass

CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

# Adds an (often empty) think block to the last assistant turn and removes the thinking of turns before the last
# question; knows tools. A prompt rendered alone is therefore not always a prefix of the conversation.
QWEN3 = """\
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- '# Tools' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- set content = message.content or '' %}
{%- set thinking = '' %}
{%- if message.reasoning_content is string %}
{%- set thinking = message.reasoning_content %}
{%- elif '</think>' in content %}
{%- set thinking = content.split('</think>')[0].split('<think>')[-1] %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last and (loop.last or thinking) %}
{{- '<think>\\n' + thinking.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
{%- else %}
{{- content }}
{%- endif %}
{%- for call in message.tool_calls or [] %}
{%- set call = call.function if call.function else call %}
{{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' + (call.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- elif not (tools and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

# The generation prompt opens the think block; a rendered answer carries it whole.
THINK_OPENER = QWEN3.replace(
    "{{- '<|im_start|>assistant\\n' }}\n{%- if enable_thinking is defined",
    "{{- '<|im_start|>assistant\\n<think>\\n' }}\n{%- if enable_thinking is defined",
).replace("{{- '<think>\\n\\n</think>\\n\\n' }}", "{{- '\\n</think>\\n\\n' }}")

LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + (message.content | trim) + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

# No system role: its text goes in front of the first user turn. Turns must alternate.
GEMMA = """\
{{- bos_token }}
{%- set system = '' %}
{%- if messages[0].role == 'system' %}
{%- set system = messages[0].content + '\\n\\n' %}
{%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
{{- (system if loop.first else '') + (message.content | trim) + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""

# No generation prompt: an answer follows [/INST] at once. The system text goes into the user turn that comes last of
# all messages, so it disappears from the prompt as soon as an answer follows.
MISTRAL = """\
{{- bos_token }}
{%- set system = '' %}
{%- if messages[0].role == 'system' %}
{%- set system = messages[0].content + '\\n\\n' %}
{%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}
{%- if loop.last %}
{{- '[INST] ' + system + message.content + ' [/INST]' }}
{%- else %}
{{- '[INST] ' + message.content + ' [/INST]' }}
{%- endif %}
{%- elif message.role == 'assistant' %}
{{- ' ' + (message.content | trim) + eos_token }}
{%- endif %}
{%- endfor %}"""

# Strips the thinking of every rendered assistant turn; the generation prompt opens a think block that the rendered
# answer does not have.
DEEPSEEK_R1 = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'system' %}{{- message.content }}{%- endif %}
{%- if message.role == 'user' %}{{- '<|User|>' + message.content }}{%- endif %}
{%- if message.role == 'assistant' %}
{%- set content = message.content %}
{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}
{{- '<|Assistant|>' + content + '<|end_of_sentence|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{%- endif %}"""

# Channels: the thinking of the last turn is a message of its own, older thinking is dropped. Only the very last turn
# ends in <|return|>; in the middle of a conversation it is <|end|>.
HARMONY = """\
{{- '<|start|>system<|message|>You are a model.<|end|>' }}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- if message.thinking and loop.last %}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}
{%- endif %}
{{- '<|start|>assistant<|channel|>final<|message|>' + message.content }}
{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}
{%- elif message.role == 'system' %}
{{- '<|start|>developer<|message|>' + message.content + '<|end|>' }}
{%- else %}
{{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"""

# A header says whether the model thinks; tools come as an option of the template. All earlier text stays as it was
# said, and without thinking every turn of the assistant begins with an empty think block.
SMOLLM3 = """\
{%- set mode = '/think' if enable_thinking is not defined or enable_thinking else '/no_think' %}
{{- '<|im_start|>system\\nReasoning Mode: ' + mode + '\\n\\n' }}
{{- messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' }}
{%- for tool in xml_tools or [] %}{{- (tool | string) + '\\n' }}{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- set open = '<|im_start|>assistant\\n' + ('' if mode == '/think' else '<think>\\n\\n</think>\\n') %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}{{- open + message.content.lstrip('\\n') + '<|im_end|>\\n' }}
{%- elif message.role != 'system' %}{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- open }}{%- endif %}"""

# Writes no end token at all.
NO_END = """\
{%- for message in messages %}
{{- ('User: ' if message.role == 'user' else 'Bot: ') + message.content + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'Bot: ' }}{%- endif %}"""


@dataclass(frozen=True)
class Family:
    """A chat template with the tokens it needs."""

    template: str
    eos_token: str
    bos_token: str | None = None
    end: str | None = None
    """What closes an assistant's turn; by default the EOS token."""
    prefix_preserving: bool = True
    """Whether the prompt with its generation prompt always begins the whole conversation."""
    add_bos: bool = False
    """Whether the tokenizer itself adds BOS, so that a careless encoder doubles the template's."""


FAMILIES = {
    "chatml": Family(CHATML, "<|im_end|>"),
    "qwen3": Family(QWEN3, "<|im_end|>", prefix_preserving=False),
    "think_opener": Family(THINK_OPENER, "<|im_end|>", prefix_preserving=False),
    "llama3": Family(LLAMA3, "<|eot_id|>", "<|begin_of_text|>", add_bos=True),
    "gemma": Family(GEMMA, "<eos>", "<bos>", end="<end_of_turn>", add_bos=True),
    "mistral": Family(MISTRAL, "</s>", "<s>", prefix_preserving=False, add_bos=True),
    "deepseek_r1": Family(DEEPSEEK_R1, "<|end_of_sentence|>", "<|begin_of_sentence|>", prefix_preserving=False),
    "smollm3": Family(SMOLLM3, "<|im_end|>"),
    "harmony": Family(HARMONY, "<|return|>", "<|startoftext|>", prefix_preserving=False),
}

SPECIAL_TOKENS = [
    "<|endoftext|>", "<|pad|>", "<|bos|>",
    "<|im_start|>", "<|im_end|>",
    "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>",
    "<s>", "</s>",
    "<|begin_of_sentence|>", "<|end_of_sentence|>", "<|User|>", "<|Assistant|>",
    "<|startoftext|>", "<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>",
]  # fmt: skip
