"""Write the chat set and a small model with random weights. Nothing is downloaded.

    python -m recipes.thinking_chats.prepare

The conversations are four questions to a ticket office whose fares are in the system text. Each answer comes after
some thinking. As in Qwen 3, DeepSeek and GLM, the chat template drops the thinking of earlier turns, so a turn is
asked in a context that has none. `turns.jsonl` has one turn per line: its context, and the answer that is trained.
`chats.jsonl` has one conversation per line, as a group: the prompt, and as the one response all turns after it.
"""

import argparse
import json
import random
from pathlib import Path

from mrt_plugin.models.tiny_model import build_llama, build_tokenizer, save

FOLDER = Path("outputs/thinking_chats")
TURNS = 4

TOWNS = (
    "Aldbury Brackley Corsham Dunster Eastleigh Fordwich Glastow Harwood "
    "Ilminster Jarrow Kelso Ledbury Malton Newnham Oakham Petworth"
).split()

TEMPLATE = (
    "{%- for message in messages %}{%- set content = message['content'] %}"
    "{%- if '</think>' in content and not loop.last %}{%- set content = content.split('</think>')[-1].lstrip() %}"
    "{%- endif %}{{- '<|im_start|>' + message['role'] + '\n' + content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
"""ChatML that keeps the thinking of the last message only."""


def fares() -> dict[tuple[str, str], int]:
    """Draw the fare between each town and the six that follow it, in pence."""
    rng = random.Random("fares")
    count = len(TOWNS)
    legs = [(TOWNS[start], TOWNS[(start + step) % count]) for start in range(count) for step in range(1, 7)]
    return {leg: 10 * rng.randrange(90, 990) for leg in legs}


def money(pence: int) -> str:
    return f"{pence // 100}.{pence % 100:02d}"


def system_text() -> str:
    rules = (
        "You are the ticket office of a railway. Think first: find the fares in the list, and write down each sum. "
        "Then answer in one short sentence with the fare in pounds. Name no fare that is not in the list. Children "
        "pay half of the fare. The fares of single tickets are:"
    )
    return "\n".join([rules, *(f"{start} to {end}: {money(fare)}" for (start, end), fare in fares().items())])


def conversation(number: int) -> list[dict[str, str]]:
    """Draw four questions about a journey of two legs, with thinking and answers."""
    rng, known = random.Random(f"conversation {number}"), fares()
    start, via = rng.choice(list(known))
    end = rng.choice([to for town, to in known if town == via])
    first, second = known[start, via], known[via, end]
    both = first + second
    turns = [
        (
            f"What is a ticket from {start} to {via}?",
            f"The list has a line {start} to {via}: {money(first)}. One person travels, so nothing is added. The fare "
            f"is {money(first)}.",
            f"A ticket from {start} to {via} is {money(first)} pounds.",
        ),
        (
            f"And from there to {end}?",
            f"There means {via}, the end of the first leg. The list has a line {via} to {end}: {money(second)}. The "
            f"question is about this leg only. The fare is {money(second)}.",
            f"A ticket from {via} to {end} is {money(second)} pounds.",
        ),
        (
            "What do I pay for both?",
            f"Both legs are {start} to {via}, {money(first)}, and {via} to {end}, {money(second)}. The sum is "
            f"{money(first)} + {money(second)} = {money(both)}.",
            f"Both tickets are {money(both)} pounds.",
        ),
        (
            "And with one child?",
            f"One adult pays {money(both)} for both legs. A child pays half: {money(both)} / 2 = {money(both // 2)}. "
            f"The sum is {money(both)} + {money(both // 2)} = {money(both + both // 2)}.",
            f"With one child it is {money(both + both // 2)} pounds.",
        ),
    ]
    messages = [{"role": "system", "content": system_text()}]
    for question, thinking, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": f"<think>\n{thinking}\n</think>\n\n{answer}"})
    return messages


def split_turns(messages: list[dict[str, str]]) -> list[list[dict[str, object]]]:
    """Return each assistant turn with its context. Only the turn itself is trained."""
    found = []
    for last, message in enumerate(messages):
        if message["role"] == "assistant":
            turns = messages[: last + 1]
            found.append([{**turn, "train": place == last} for place, turn in enumerate(turns)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FOLDER)
    parser.add_argument("--conversations", type=int, default=40)
    given = parser.parse_args()
    output = given.output
    output.mkdir(parents=True, exist_ok=True)
    chats = [conversation(number) for number in range(given.conversations)]
    rows = {
        "chats": [{"prompt": chat[:2], "responses": [chat[2:]]} for chat in chats],
        "turns": [{"messages": turn} for chat in chats for turn in split_turns(chat)],
    }
    for name, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (output / f"{name}.jsonl").write_text(text, encoding="utf-8")
    tokenizer = build_tokenizer([turn["content"] for chat in chats for turn in chat], vocabulary=1000)
    tokenizer.chat_template = TEMPLATE
    tokenizer.model_max_length = 4096
    sizes = {"intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4}
    model = build_llama(tokenizer, hidden=256, max_position_embeddings=4096, **sizes)
    save(model, tokenizer, output / "model")
    system = len(tokenizer(system_text())["input_ids"])
    print(f"{len(chats)} conversations of {TURNS} turns, a system text of {system:,} tokens: {output}")


if __name__ == "__main__":
    main()
