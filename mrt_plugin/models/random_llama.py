"""The random Llama for speed measurements: in `mrt bench`, and for the costs in the claim experiment."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def random_llama(vocabulary: int = 1000) -> LlamaForCausalLM:
    """Build a Llama with four layers, hidden size 256, 8 heads, 4 key-value heads and seeded weights, in fp32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=256,
                intermediate_size=688,
                num_hidden_layers=4,
                num_attention_heads=8,
                num_key_value_heads=4,
                max_position_embeddings=1 << 20,
                tie_word_embeddings=False,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=0,
            )
        )
