"""Many adapters of one base model, and batches in which every row has its own.

    pool = AdapterPool(model, adapter_bytes=1 << 30, factor_bytes=1 << 30)
    pool.add("anna", "runs/anna/adapter")
    pool.add("ben", "runs/ben/adapter")
    tokens = pool.generate(input_ids, ["anna", None, "ben"], attention_mask=mask, max_new_tokens=64)

Adapters are read from their folders when they are first asked for, and held in their own compact form on the model's
device. The factors of a batch are assembled from there once, for all its forward passes. Both are kept until room is
needed. All methods may stand in one batch.
"""

import inspect
import json
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, count
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
from bishare.ops.frozen_linear import fast_without_gradient, patch_linears
from bishare.serving.batch_factors import BatchFactors, rooms
from bishare.serving.compact_adapter import FP32, Compact, Layout, compact_bytes
from bishare.serving.kv_cache import roomy_cache
from bishare.serving.lru_cache import Prepared, Shelf

STAGED_BYTES = 64 << 20
"""Adapters of one form are assembled together up to this size: for small ones the calls cost more than the values."""


@dataclass(frozen=True)
class _Entry:
    """An adapter that can be asked for."""

    name: str
    folder: Path
    version: int
    """Told apart from an earlier adapter of the same name, of which something may still be held."""


class AdapterPool:
    """Serves adapters of one base model. All methods may be called from any thread at any time.

    Beside the two budgets, one adapter's values are held for each configuration in use (for VeRA its random pair too),
    and while a batch is made ready copies of up to 64 MB of its adapters, or of one.

    Args:
        model: The base model without an adapter, on its device. It is put into evaluation mode; its weights, and what
            it answers outside batches, stay as they are.
        adapter_bytes: Bytes of adapters in compact form on the device; the least recently used are dropped, and read
            from their folders when they are asked for again.
        factor_bytes: Bytes of assembled factors of batches on the device.

    Raises:
        UserError: The model carries an adapter already, or a budget is not positive.
    """

    def __init__(self, model: PreTrainedModel, *, adapter_bytes: int, factor_bytes: int) -> None:
        if hasattr(model, NAME):
            raise UserError(f"this {type(model).__name__} carries an adapter; call remove(model) first.")
        self.model = nn.Module.eval(model)
        self.adapters: Shelf[Compact] = Shelf(adapter_bytes, "adapter_bytes")
        self.batches: Shelf[BatchFactors] = Shelf(factor_bytes, "factor_bytes")
        self._entries: dict[str, _Entry] = {}
        self._layouts: dict[Hashable, Layout] = {}
        self._hooks: dict[str, torch.utils.hooks.RemovableHandle] = {}
        self._versions = count()
        self._lock = threading.Lock()  # of the entries
        self._layout_lock = threading.Lock()  # of the layouts and hooks
        self._current = threading.local()

    # --- which adapters there are ------------------------------------------------------------------------------

    def add(self, name: str, folder: str | Path) -> None:
        """Let rows ask for the adapter in ``folder`` by ``name``; it is read when the first one does.

        Raises:
            UserError: The name is taken, or the folder holds no adapter.
        """
        if not Path(folder, WEIGHTS).is_file():
            raise UserError(f"adapter {name!r}: {folder} holds no adapter: {WEIGHTS} is missing.")
        with self._lock:
            if name in self._entries:
                raise UserError(f"adapter {name!r} is there already; remove it first, or add this one by another name.")
            self._entries[name] = _Entry(name, Path(folder), next(self._versions))

    def remove(self, name: str) -> None:
        """Forget an adapter; batches that have begun with it end with it.

        Raises:
            UserError: There is none of this name.
        """
        (entry,) = self._find([name])
        assert entry is not None
        with self._lock:
            self._entries.pop(name, None)
        self.adapters.discard(lambda key: key == entry.version)
        self.batches.discard(lambda key: entry.version in cast(tuple[int | None, ...], key))

    def names(self) -> list[str]:
        """The adapters that can be asked for."""
        with self._lock:
            return list(self._entries)

    def _find(self, names: Sequence[str | None]) -> list[_Entry | None]:
        with self._lock:
            for row, name in enumerate(names):
                if name is not None and name not in self._entries:
                    raise UserError(f"row {row} asks for adapter {name!r}, which the pool does not have; add it first.")
            return [None if name is None else self._entries[name] for name in names]

    # --- running batches ---------------------------------------------------------------------------------------

    @contextmanager
    def batch(self, names: Sequence[str | None]) -> Iterator[None]:
        """Let every call of the model in this thread use these adapters, one for each row; None is the base model.

        Raises:
            UserError: An adapter is unknown or its file damaged, or the factors of the batch exceed ``factor_bytes``.
        """
        if getattr(self._current, "factors", None) is not None:
            raise UserError("this thread is inside a batch of this pool already; leave it first.")
        entries = self._find(names)
        key = tuple(None if entry is None else entry.version for entry in entries)
        prepare = partial(self._prepare_batch, entries)
        with torch.no_grad(), fast_without_gradient(), self.batches.hold(key, prepare) as factors:
            self._current.factors = factors
            try:
                yield
            finally:
                self._current.factors = None

    def logits(self, input_ids: Tensor, names: Sequence[str | None], *, attention_mask: Tensor | None = None) -> Tensor:
        """One forward pass.

        Args:
            input_ids: Tokens [b, n].
            names: An adapter for each row, None for the base model.
            attention_mask: [b, n], 0 at padding, which may stand on either side.

        Returns:
            Logits [b, n, vocabulary].
        """
        order, back = self._order(names, len(input_ids))
        given: dict[str, Any] = {"input_ids": input_ids[order]}
        if attention_mask is not None:
            given["attention_mask"] = attention_mask = attention_mask[order]
            if "position_ids" in inspect.signature(self.model.forward).parameters:
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
        """Greedy answers, token by token with a key/value cache. For other ways to generate, call the model's own
        ``generate`` inside :meth:`batch`.

        Args:
            input_ids: Prompts [b, n], padded on the left.
            names: An adapter for each row, None for the base model.
            attention_mask: [b, n], 0 at padding.
            max_new_tokens: The most tokens that are added to a prompt.

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
        """The rows sorted so that those of one form follow each other, like ranks too; and the way back."""
        if len(names) != num_rows:
            raise UserError(
                f"adapters are named for {len(names)} rows, but input_ids has {num_rows}; name one for each row (None "
                "for the base model)."
            )
        keys: list[tuple[int, int, int]] = []
        forms: dict[Hashable, int] = {}
        for entry in self._find(names):
            if entry is None:
                keys.append((1, 0, 0))
                continue
            with self._held(entry) as compact:
                number = forms.setdefault(compact.form, len(forms))
                keys.append((-max(compact.layout.ranks.values(), default=0), number, entry.version))
        order = sorted(range(len(names)), key=keys.__getitem__)
        return order, sorted(range(len(names)), key=order.__getitem__)

    def _cache(self) -> dict[str, Any]:
        """An empty cache, for decoders that transformers gives its own; others bring one."""
        model: Any = self.model
        plain = model._supports_default_dynamic_cache() and not model.config.is_encoder_decoder
        return {"past_key_values": roomy_cache(model.config)} if plain else {}

    def _pad_token(self) -> int | None:
        """What follows an answer that ended: any token will do, since it is no part of the answer."""
        config: Any = self.model.generation_config
        ends = config.eos_token_id
        end: int | None = ends[0] if isinstance(ends, list) else ends
        return end if config.pad_token_id is None else int(config.pad_token_id)

    def _add_update(self, name: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Forward hook of an adapted weight."""
        factors: BatchFactors | None = getattr(self._current, "factors", None)
        return None if factors is None else factors.add_update(name, inputs[0], output)

    # --- making what is not there ------------------------------------------------------------------------------

    @contextmanager
    def _held(self, entry: _Entry) -> Iterator[Compact]:
        try:
            with self.adapters.hold(entry.version, partial(self._prepare_adapter, entry)) as compact:
                yield compact
        except UserError as error:
            raise UserError(f"adapter {entry.name!r}: {error}") from error

    def _prepare_adapter(self, entry: _Entry) -> Prepared[Compact]:
        file = read_adapter(entry.folder)  # maps the file; nothing is on the device yet
        check_use(file, entry.folder, "AdapterPool")
        layout = self._layout(file, entry.folder)
        where = str(entry.folder / WEIGHTS)
        return Prepared(compact_bytes(file), lambda: layout.read(file, where=where))

    def _layout(self, file: AdapterFile, folder: Path) -> Layout:
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

    def _prepare_batch(self, entries: Sequence[_Entry | None]) -> Prepared[BatchFactors]:
        rows: dict[_Entry, list[int]] = {}
        for row, entry in enumerate(entries):
            if entry is not None:
                rows.setdefault(entry, []).append(row)
        shared = len(rows) == 1 and None not in entries
        forms: dict[tuple[Layout, Hashable], list[_Entry]] = {}
        ranks: dict[tuple[str, int, int], dict[int, int]] = {}  # by row, of each weight and its width and height
        for entry, its_rows in rows.items():
            with self._held(entry) as compact:
                forms.setdefault(compact.form, []).append(entry)
                layout = compact.layout
            for slot in layout.slots:
                if rank := layout.ranks.get(slot.name, 0):
                    of_weight = ranks.setdefault((slot.name, slot.in_features, slot.out_features), {})
                    of_weight.update(dict.fromkeys([0] if shared else its_rows, rank))
        num_stored = 1 if shared else len(entries)
        stacked = {name: rooms(by_row, num_stored, n, m) for (name, n, m), by_row in ranks.items()}

        def build() -> BatchFactors:
            model = self.model
            patch_linears(model)  # here, since attaching an adapter to the model in between undoes it
            factors = BatchFactors(len(entries), stacked, shared=shared, dtype=model.dtype, device=model.device)
            for form, alike in forms.items():
                at_once = max(1, STAGED_BYTES // form[0].num_bytes)
                for first in range(0, len(alike), at_once):
                    self._put(factors, form, {entry: rows[entry] for entry in alike[first : first + at_once]})
            return factors

        num_bytes = self.model.dtype.itemsize * sum(room.num_values for room in chain.from_iterable(stacked.values()))
        num_bytes += FP32 * len(entries) * sum(layout.num_scales for layout in {layout for layout, _ in forms})
        return Prepared(num_bytes, build)

    def _put(self, factors: BatchFactors, form: tuple[Layout, Hashable], rows: Mapping[_Entry, Sequence[int]]) -> None:
        """Assemble adapters of one form for their rows."""
        layout, owners = form[0], dict[str, Tensor]()
        values = layout.empty(len(rows))
        # One is held at a time: whoever held several and waited for more could wait for another who does the same.
        for number, entry in enumerate(rows):
            with self._held(entry) as compact:
                if compact.form != form:
                    raise UserError(f"{entry.folder} was written over meanwhile; remove and add the adapter.")
                compact.write_to(values[number])
                owners = dict(compact.owners)
        with layout.holding(values, owners) as adapter:
            factors.put(adapter, list(rows.values()))
