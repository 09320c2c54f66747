"""Many adapters of the same base model, and batches with an adapter of its own for each row.

    pool = AdapterPool(model, adapter_bytes=1 << 30, factor_bytes=1 << 30)
    pool.add("anna", "runs/anna/adapter")
    pool.add("ben", "runs/ben/adapter")
    tokens = pool.generate(input_ids, ["anna", None, "ben"], attention_mask=mask, max_new_tokens=64)

Adapters are read from their folders on first use, and their stored values are kept on the model's device. The factors
of a batch are assembled once, for all its forward passes. Two caches hold adapters and factors within the budgets. All
methods may be mixed in a batch.

Shapes: b rows of n tokens; input_ids [b, n].
"""

import inspect
import json
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bishare.adapters.checkpoint import WEIGHTS, AdapterFile, check_slots, read_adapter
from bishare.adapters.uses import check_use
from bishare.errors import UserError
from bishare.models.attach import NAME
from bishare.models.targets import find_slots
from bishare.ops.dispatch import fast_without_gradient
from bishare.ops.frozen_linear import patch_linears
from bishare.serving.batch_factors import BatchFactors
from bishare.serving.batch_plan import Entry, plan_batch
from bishare.serving.compact_adapter import AssemblyKey, CompactAdapter, Layout, compact_bytes
from bishare.serving.kv_cache import preallocated_cache
from bishare.serving.lru_cache import LRUCache, Prepared


class AdapterPool:
    """Serves adapters of the same base model. All methods may be called from any thread at any time.

    Beside the two budgets, the pool holds the values of an adapter for each configuration in use (for VeRA also the
    random pair). While a batch is prepared, the pool holds copies of its adapters: up to 64 MB, or a single adapter.

    Args:
        model: The base model without an adapter, on its device. The pool puts the model into evaluation mode; weights
            stay as they are, and so do answers outside batches.
        adapter_bytes: Bytes of adapters on the device. The least recently used adapters are evicted, and read from
            their folders again on the next use.
        factor_bytes: Bytes of assembled factors of batches on the device.

    Raises:
        UserError: The model has an adapter already, or a budget is not positive.
    """

    def __init__(self, model: PreTrainedModel, *, adapter_bytes: int, factor_bytes: int) -> None:
        if hasattr(model, NAME):
            raise UserError(f"this {type(model).__name__} carries an adapter; call remove(model) first.")
        self.model = nn.Module.eval(model)
        self.adapters: LRUCache[CompactAdapter] = LRUCache(adapter_bytes, "adapter_bytes")
        self.batches: LRUCache[BatchFactors] = LRUCache(factor_bytes, "factor_bytes")
        self._entries: dict[str, Entry] = {}
        self._layouts: dict[Hashable, Layout] = {}
        self._hooks: dict[str, torch.utils.hooks.RemovableHandle] = {}
        self._versions = count()
        self._lock = threading.Lock()  # of the entries
        self._layout_lock = threading.Lock()  # of the layouts and hooks
        self._current = threading.local()

    # --- adapters ----------------------------------------------------------------------------------------------

    def add(self, name: str, folder: str | Path) -> None:
        """Add the adapter in ``folder`` under ``name``; its file is read on first use.

        Raises:
            UserError: The name is taken, or the folder holds no adapter.
        """
        if not Path(folder, WEIGHTS).is_file():
            raise UserError(f"adapter {name!r}: {folder} holds no adapter: {WEIGHTS} is missing.")
        with self._lock:
            if name in self._entries:
                raise UserError(f"adapter {name!r} is there already; remove it first, or add this one by another name.")
            self._entries[name] = Entry(name, Path(folder), next(self._versions))

    def remove(self, name: str) -> None:
        """Remove an adapter; running batches with the adapter are not affected.

        Raises:
            UserError: There is no adapter of this name.
        """
        (entry,) = self._find([name])
        assert entry is not None
        with self._lock:
            self._entries.pop(name, None)
        self.adapters.discard(lambda key: key == entry.version)
        self.batches.discard(lambda key: entry.version in cast(tuple[int | None, ...], key))

    def names(self) -> list[str]:
        """Names of the adapters."""
        with self._lock:
            return list(self._entries)

    def _find(self, names: Sequence[str | None]) -> list[Entry | None]:
        """The entries of adapters, None for the base model."""
        found: list[Entry | None] = []
        with self._lock:
            for row, name in enumerate(names):
                if name is not None and name not in self._entries:
                    raise UserError(f"row {row} asks for adapter {name!r}, which the pool does not have; add it first.")
                found.append(None if name is None else self._entries[name])
        return found

    # --- batches -----------------------------------------------------------------------------------------------

    @contextmanager
    def batch(self, names: Sequence[str | None]) -> Iterator[None]:
        """Let every call of the model in this thread use the named adapter of each row; None is the base model.

        Raises:
            UserError: An adapter is unknown or its file damaged, or the factors of the batch exceed ``factor_bytes``.
        """
        if getattr(self._current, "factors", None) is not None:
            raise UserError("this thread is inside a batch of this pool already; leave it first.")
        entries = self._find(names)
        key = tuple(None if entry is None else entry.version for entry in entries)
        prepare = partial(self._prepare_batch, entries)
        with torch.no_grad(), fast_without_gradient(), self.batches.pin(key, prepare) as factors:
            self._current.factors = factors
            try:
                yield
            finally:
                self._current.factors = None

    def logits(self, input_ids: Tensor, names: Sequence[str | None], *, attention_mask: Tensor | None = None) -> Tensor:
        """Logits of a forward pass.

        Args:
            input_ids: Tokens [b, n].
            names: An adapter for each row, None for the base model.
            attention_mask: [b, n], 0 at padding, on either side.

        Returns:
            Logits [b, n, vocabulary].
        """
        order, back = self._order(names, len(input_ids))
        given: dict[str, Any] = {"input_ids": input_ids[order]}
        if attention_mask is not None:
            given["attention_mask"] = attention_mask = attention_mask[order]
            if "position_ids" in inspect.signature(self.model.forward).parameters:  # padding has no position
                given["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
        with self.batch([names[row] for row in order]):
            return cast(Tensor, self.model(**given).logits[back])

    def generate(
        self,
        input_ids: Tensor,
        names: Sequence[str | None],
        *,
        attention_mask: Tensor | None = None,
        max_new_tokens: int = 64,
    ) -> Tensor:
        """Greedy answers, token by token with a key/value cache.

        For sampling or beam search, call the model's own ``generate`` inside :meth:`batch`.

        Args:
            input_ids: Prompts [b, n], padded on the left.
            names: An adapter for each row, None for the base model.
            attention_mask: [b, n], 0 at padding.
            max_new_tokens: Longest answer, in tokens.

        Returns:
            Prompts and answers [b, n + at most max_new_tokens]; an answer that ends early is padded on the right.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        order, back = self._order(names, len(input_ids))
        generate: Any = self.model.generate
        with self.batch([names[row] for row in order]):
            tokens: Tensor = generate(
                input_ids=input_ids[order],
                attention_mask=attention_mask[order],
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=self._pad_token(),
                **self._cache(),
            )
        return tokens[back]

    def _order(self, names: Sequence[str | None], num_rows: int) -> tuple[list[int], list[int]]:
        """The rows sorted by rank and assembly key, and the inverse order.

        Rows that are assembled together become neighbours, and so do rows of similar ranks.
        """
        if len(names) != num_rows:
            raise UserError(
                f"adapters are named for {len(names)} rows, but input_ids has {num_rows}; name one for each row (None "
                "for the base model)."
            )
        keys: list[tuple[int, int, int]] = []
        numbers: dict[Hashable, int] = {}  # of the assembly keys, in order of appearance
        for entry in self._find(names):
            if entry is None:  # rows of the base model come last
                keys.append((1, 0, 0))
                continue
            with self._loaded(entry) as adapter:
                number = numbers.setdefault(adapter.assembly_key, len(numbers))
                keys.append((-max(adapter.layout.ranks.values(), default=0), number, entry.version))
        order = sorted(range(len(names)), key=keys.__getitem__)
        return order, sorted(range(len(names)), key=order.__getitem__)

    def _cache(self) -> dict[str, Any]:
        """The option for an empty cache, if the model takes the default cache of transformers."""
        model: Any = self.model
        # Other models, for example with recurrent layers, have caches of their own.
        takes_default = model._supports_default_dynamic_cache() and not model.config.is_encoder_decoder
        return {"past_key_values": preallocated_cache(model.config)} if takes_default else {}

    def _pad_token(self) -> int | None:
        """The token behind an answer that ended early: any token will do, since padding is no part of the answer."""
        config: Any = self.model.generation_config
        if config.pad_token_id is not None:
            return int(config.pad_token_id)
        end: int | list[int] | None = config.eos_token_id
        return end[0] if isinstance(end, list) else end

    def _add_update(self, name: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Forward hook of an adapted weight."""
        factors: BatchFactors | None = getattr(self._current, "factors", None)
        if factors is None:  # outside batches, the base model answers
            return None
        return factors.add_update(name, inputs[0], output)

    # --- preparation -------------------------------------------------------------------------------------------

    @contextmanager
    def _loaded(self, entry: Entry) -> Iterator[CompactAdapter]:
        """The adapter in memory, pinned until the context ends; errors name the adapter."""
        try:
            with self.adapters.pin(entry.version, partial(self._prepare_adapter, entry)) as adapter:
                yield adapter
        except UserError as error:
            raise UserError(f"adapter {entry.name!r}: {error}") from error

    def _prepare_adapter(self, entry: Entry) -> Prepared[CompactAdapter]:
        file = read_adapter(entry.folder)  # maps the file; nothing is on the device yet
        check_use(file, entry.folder, "AdapterPool")
        layout = self._layout(file, entry.folder)
        where = str(entry.folder / WEIGHTS)
        return Prepared(compact_bytes(file), lambda: layout.read(file, where=where))

    def _layout(self, file: AdapterFile, folder: Path) -> Layout:
        """The layout of a file's adapter, with hooks on its weights."""
        key = file.config.method, json.dumps(asdict(file.config), sort_keys=True), file.slots
        with self._layout_lock:
            if key not in self._layouts:
                check_slots(file, find_slots(self.model, file.config), folder)
                self._layouts[key] = Layout(file.config, file.slots, self.model.device)
                for slot in file.slots:
                    if slot.name not in self._hooks:
                        module = self.model.get_submodule(slot.name)
                        self._hooks[slot.name] = module.register_forward_hook(partial(self._add_update, slot.name))
            return self._layouts[key]

    def _prepare_batch(self, entries: Sequence[Entry | None]) -> Prepared[BatchFactors]:
        plan = plan_batch(entries, self._loaded)

        def build() -> BatchFactors:
            model = self.model
            patch_linears(model)  # here, since attaching an adapter to the model in between undoes it
            factors = BatchFactors(
                plan.num_rows, plan.shapes, shared=plan.shared, dtype=model.dtype, device=model.device
            )
            for key, rows in plan.stages():
                self._assemble(factors, key, rows)
            return factors

        return Prepared(plan.num_bytes(self.model.dtype.itemsize), build)

    def _assemble(self, factors: BatchFactors, key: AssemblyKey, rows: Mapping[Entry, Sequence[int]]) -> None:
        """Assemble the factors of adapters with the same assembly key, for the rows of each."""
        layout, owners = key[0], dict[str, Tensor]()
        values = layout.empty(len(rows))
        # A single adapter is pinned at a time: two threads that pin several and wait for more could wait forever.
        for number, entry in enumerate(rows):
            with self._loaded(entry) as adapter:
                if adapter.assembly_key != key:
                    raise UserError(f"{entry.folder} was written over meanwhile; remove and add the adapter.")
                adapter.write_to(values[number])
                owners = dict(adapter.owners)
        with layout.views_of(values, owners) as adapters:
            factors.assemble(adapters, list(rows.values()))
