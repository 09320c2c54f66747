"""DeepSpeed ZeRO for adapters, under the name that configurations use."""

from bishare.distributed.deepspeed import BiShareDeepSpeed

__all__ = ["BiShareDeepSpeed"]
