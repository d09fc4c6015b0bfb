"""Build a tiny chat model for trying a recipe on CPU, from nothing: no hub, a few seconds.

    python recipes/tiny_model.py --data data/pool.jsonl --output outputs/tiny_model

The tokenizer (byte-level BPE with a ChatML template) is trained on the data's own text; the model is a Llama of two
layers with random weights. It learns the data's words and little else: it shows that a recipe runs, not its worth.
"""

import argparse
import json
from pathlib import Path

from mrt_plugin import load_groups
from mrt_plugin.models.tiny_model import build_llama, build_tokenizer, save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="groups, as `load_groups` reads them")
    parser.add_argument("--output", type=Path, default=Path("outputs/tiny_model"))
    arguments = parser.parse_args()

    texts = []
    for group in load_groups(arguments.data):
        for item in [group["prompt"], *group["responses"]]:
            texts.append(item if isinstance(item, str) else json.dumps(item, ensure_ascii=False))
    tokenizer = build_tokenizer(texts, vocabulary=4096)
    tokenizer.model_max_length = 2048
    model = build_llama(tokenizer, max_position_embeddings=2048)
    arguments.output.mkdir(parents=True, exist_ok=True)
    save(model, tokenizer, arguments.output)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens: {arguments.output}")


if __name__ == "__main__":
    main()
