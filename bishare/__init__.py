"""Parameter-sharing LoRA: Bi-Share LoRA and ASLoRA for any Hugging Face model."""

__version__ = "0.1.0"
