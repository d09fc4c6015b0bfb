"""A pool with everything that curation is there for, made up here: known, so that tests can say what must happen."""

import random
from typing import Any

SUBJECTS = "tides volcanoes bread chess bees glass rivers paper steel music maps wool clocks tea salt ships".split()
OPENINGS = (
    "Explain in simple words how {} came to matter to so many people, and give one example.",
    "Write three short paragraphs about {} for a school newspaper in a small town.",
    "What should a careful beginner know about {} before spending any money on it?",
)
SENTENCES = (
    "People have cared about {} for a long time.",
    "Much of what we know of {} comes from patient observation.",
    "There is a museum of {} in a town by the sea.",
    "Ask three experts on {} and you hear four opinions.",
    "A good book on {} begins with a question.",
    "Trade in {} shaped whole cities.",
    "Children learn about {} faster than their parents do.",
    "Nobody owns the idea of {}.",
)

CUT = "It began with a simple question. Nobody knew the answer. Then one day a traveller told them about the"
CODE = "def double(x):\n    # Works for numbers. Also for strings\n    return 2 * x"
LOOP = "and so we went on and on along the road to the next village and asked for bread " * 12
REFUSAL = "I'm sorry, but I can't help with that request."
CHINESE = "春天来了，花园里的花都开了。孩子们在草地上奔跑，老人们坐在长椅上聊天。"


def prompt(number: int) -> str:
    """A prompt that is not near any other."""
    drawn = random.Random(f"prompt {number}")
    background = [sentence.format(drawn.choice(SUBJECTS)) for sentence in drawn.sample(SENTENCES, 4)]
    opening = OPENINGS[number % len(OPENINGS)].format(SUBJECTS[number // len(OPENINGS) % len(SUBJECTS)])
    return f"{opening} {' '.join(background)}"


def answer(number: int, variant: int, sentences: int = 3) -> str:
    """A whole, ordinary answer."""
    chosen = random.Random(f"{number}/{variant}").sample(SENTENCES, sentences)
    return " ".join(chosen).format(*[SUBJECTS[(number + variant) % len(SUBJECTS)]] * sentences)


def pool(size: int = 40, n: int = 6, *, scores: bool = True) -> list[dict[str, Any]]:
    """`size` groups of `n` ordinary answers, some of which are spoiled in known ways. Scores are in [0, 1]."""
    groups = []
    for number in range(size):
        responses = [answer(number, variant) for variant in range(n)]
        spoiled = (CUT, CODE, LOOP, REFUSAL, CHINESE, f"{answer(number, 99)}<|im_end|>\n")
        if number % 2:
            responses[number % n] = spoiled[number // 2 % len(spoiled)]
        if number % 5 == 0:
            responses[-1] = responses[0]
        group = {"id": f"g{number}", "prompt": prompt(number), "responses": responses}
        if scores:
            drawn = random.Random(f"score {number}")
            group["scores"] = [round(drawn.random(), 6) for _ in responses]
        groups.append(group)
    if size > 3:
        groups[3]["prompt"] = groups[1]["prompt"].replace("small", "smaller")  # near: two letters differ
    return groups
