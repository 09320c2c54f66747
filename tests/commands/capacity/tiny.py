"""A tiny Llama by its sizes."""

from transformers import LlamaConfig

TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 32,
    "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def tiny_config(**sizes: int) -> LlamaConfig:
    return LlamaConfig(**{**TINY, **sizes})
