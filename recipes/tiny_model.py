"""Build a tiny chat model for trying a recipe on CPU, from nothing: no hub, a few seconds.

    python recipes/tiny_model.py --data data/pool.jsonl --output outputs/tiny_model

The tokenizer (byte-level BPE with a ChatML template) is trained on the data's own text; the model is a Llama of two
layers with random weights. It learns the data's words and little else: it shows that a recipe runs, not its worth.
"""

import argparse
from pathlib import Path

from transformers import AutoConfig

from mrt_plugin.init.run import build_tiny_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="groups, as `load_groups` reads them")
    parser.add_argument("--output", type=Path, default=Path("outputs/tiny_model"))
    arguments = parser.parse_args()

    folder = build_tiny_model(arguments.data, arguments.output)
    print(f"{AutoConfig.from_pretrained(folder).vocab_size:,} tokens: {folder}")


if __name__ == "__main__":
    main()
