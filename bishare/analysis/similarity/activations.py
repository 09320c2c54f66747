"""The outputs of a model's updates on given tokens, as low-rank factors for every measure of similarity.

Zhou et al., "Bi-Share LoRA", ICML 2025, Figure 5. The output of an update on n tokens x is ``x Aᵀ Bᵀ``. With
``h = x Aᵀ``, the transposed output is the low-rank product ``B hᵀ``: an update with the tokens as inputs.

Shapes: x [n, in], h [n, r], B [out, r].
"""

from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bishare.adapters.factors import Factors, Slot
from bishare.models.attach import adapter_of


@torch.no_grad()
def outputs_of_updates(model: PreTrainedModel, documents: Iterable[Tensor]) -> dict[Slot, Factors]:
    """Factors hᵀ [r, n] and B [out, r] of the outputs of every update, over the n tokens of all documents.

    Args:
        model: A model with an adapter.
        documents: Tokens of each document [length]; the model reads the documents in turn.

    Raises:
        UserError: The model has no adapter.
    """
    adapter = adapter_of(model)
    factors = {slot: adapter.factors(slot) for slot in adapter.slots}
    recorded: dict[Slot, list[Tensor]] = defaultdict(list)

    def record(slot: Slot, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].flatten(0, -2).float()  # [1, length, in] to [length, in]
        recorded[slot].append((x @ factors[slot].A.T).T.cpu())

    with ExitStack() as hooks:
        for slot in adapter.slots:
            hook = model.get_submodule(slot.name).register_forward_pre_hook(partial(record, slot))
            hooks.callback(hook.remove)
        for document in documents:
            # The base model ends before the head, whose logits nobody reads.
            model.base_model(input_ids=document[None].to(model.device), use_cache=False)
    return {slot: Factors(torch.cat(recorded[slot], dim=1), factors[slot].B.cpu()) for slot in adapter.slots}
