"""What the updates of a model add to its activations, as factors that every measure of similarity reads (Figure 5).

The output of an update on n tokens x is ``x Aᵀ Bᵀ``; with ``h = x Aᵀ`` it is, transposed, the low-rank product
``B hᵀ``, so it is compared as an update whose inputs are the tokens.

Shapes: x [n, in], h [n, r], B [out, r].
"""

from collections import defaultdict
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bishare.adapters.factors import Factors, Slot
from bishare.models.attach import adapter_of


@torch.no_grad()
def outputs_of_updates(model: PreTrainedModel, documents: Iterable[Tensor]) -> dict[Slot, Factors]:
    """Factors ``(hᵀ, B)`` of the outputs of every update, over all tokens of the documents.

    Args:
        model: Carries an adapter.
        documents: Tokens [n] each; they are read one by one.

    Raises:
        UserError: The model carries no adapter.
    """
    adapter = adapter_of(model)
    factors = {slot: adapter.factors(slot) for slot in adapter.slots}
    seen: dict[Slot, list[Tensor]] = defaultdict(list)

    def see(slot: Slot, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].flatten(0, -2).float()
        seen[slot].append((x @ factors[slot].A.T).T.cpu())

    hooks = [model.get_submodule(slot.name).register_forward_pre_hook(partial(see, slot)) for slot in adapter.slots]
    try:
        for document in documents:
            model.base_model(input_ids=document[None].to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {slot: Factors(torch.cat(seen[slot], dim=1), factors[slot].B.cpu()) for slot in adapter.slots}
