"""Merges similar layers during training: ASLoRA's adaptive merging, for every method with mergeable groups.

Hu et al., 2024 (arXiv:2412.10135), section 3: shared training until ``start``, then a merge per group at every event,
then final optimisation. ``bishare.adapters.merging`` chooses the pair to merge.

Shapes: L layers in a group, distances [L, L], B of a layer [out, r].
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any

import rich
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from bishare.adapters.base import Adapter
from bishare.adapters.counts import num_lora_values, num_values
from bishare.adapters.merge_options import MergeOptions, nothing_to_merge
from bishare.adapters.mergeable_groups import MergeableGroup
from bishare.adapters.merging import choose, distances, owners_of
from bishare.analysis.merge_log import FILE, MergeRecord
from bishare.analysis.plots.sharing import Tie, merge_tree, sharing_map
from bishare.distributed.partitions import full_fp32
from bishare.files import write_text

from .run import adapter_of, run_folder, tensorboards


@dataclass(kw_only=True, eq=False)
class AdaptiveMerging(MergeOptions, Callback):
    """Merges the B matrices of each mergeable group, a pair of layers per group and event.

    A merge ties weights anew: the lower layer from then on uses the current B of the upper layer ("upper" is nearer
    the output), and so does every layer that used the lower layer's B. No value and no optimizer state is written.
    Works on ASLoRA, and on Bi-Share with ``merging: true``. The options are described in ``MergeOptions``.

    Logs:
        ``merge`` (text) and ``merges.jsonl`` in the run folder: every merge with the distances of the pair and of
            the next best pair.
        ``merge/groups/<group>``: B matrices left.
        ``merge/distance/<group>``, ``merge/next_distance/<group>``: distance of the merged pair and of the next best.
        ``merge/mean_distance/<group>``: mean over all pairs of B matrices before the merge.
        ``merge/live``, ``merge/fraction_of_lora``: live parameters, and as a fraction of a LoRA of rank
            ``lora_rank``.
        ``merge/map``, ``merge/tree`` (images): the layer whose B each layer uses, and the order of merges. Drawn after
            validation, at the end of an epoch and of training, if there was a merge.
        ``merges`` (progress bar): number of merges so far.

    Raises:
        UserError: An option is out of range, or there is nothing to merge.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._last_step = 0
        self._records: list[MergeRecord] = []
        self._events: dict[str, list[int]] = {}  # optimizer steps of every group's merges
        self._num_drawn = 0  # merges in the newest pictures

    # --- state -------------------------------------------------------------------------------------------------

    @override
    def state_dict(self) -> dict[str, Any]:
        """The records alone: everything that decides, owner maps and running means, lies in buffers of the adapter."""
        return {"last_step": self._last_step, "records": [asdict(record) for record in self._records]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_step = state_dict["last_step"]
        self._records = [MergeRecord(**record) for record in state_dict["records"]]

    # --- hooks -------------------------------------------------------------------------------------------------

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse an adapter without mergeable groups, before the base model is loaded."""
        config = getattr(pl_module, "adapter_config", None)
        if stage == "fit" and config is not None and not config.mergeable:
            raise nothing_to_merge(config.method)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        adapter = adapter_of(pl_module)
        adapter.refresh()  # after a resume, the owner maps have been loaded
        # From shapes alone, so that a resumed run plans the same merges.
        self._events = self.events_of(adapter)
        self._last_step = trainer.global_step
        self._records = [record for record in self._records if record.step <= self._last_step]
        self._num_drawn = 0
        self._check_agreement(trainer, adapter.mergeable_groups())
        self._warn_of_late_merges(trainer)
        if trainer.is_global_zero:
            # Merges that a resumed run has yet to repeat leave the file.
            write_text(run_folder(trainer) / FILE, "".join(record.line() for record in self._records))
        self._log_counts(trainer, adapter)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_step:
            return  # a further micro-batch of the same optimizer step
        self._last_step = step = trainer.global_step
        adapter = adapter_of(pl_module)
        if self.score == "mean":
            self._observe(adapter)
        due = {name: group for name, group in adapter.mergeable_groups().items() if step in self._events[name]}
        if due:
            self._merge(trainer, adapter, due)
        pl_module.log("merges", float(len(self._records)), prog_bar=True, logger=False)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._draw(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module)

    # --- deciding ----------------------------------------------------------------------------------------------

    def _warn_of_late_merges(self, trainer: Trainer) -> None:
        end = trainer.estimated_stepping_batches
        steps = list(chain(*self._events.values()))
        late = [step for step in steps if step > end]
        if late:
            rank_zero_warn(
                f"AdaptiveMerging: the run ends at optimizer step {int(end):,}, before {len(late)} of its "
                f"{len(steps)} merges (the last at step {max(late):,})."
            )

    def _observe(self, adapter: Adapter) -> None:
        """Add the values after this step to all running means."""
        groups = adapter.mergeable_groups().values()
        sources = [group.sources() for group in groups]
        # Gathered together: under DeepSpeed every call is a collective.
        values = iter(full_fp32(list(chain(*sources))))
        for group, of_group in zip(groups, sources, strict=True):
            group.observe(list(islice(values, len(of_group))))

    @torch.no_grad()
    def _merge(self, trainer: Trainer, adapter: Adapter, due: Mapping[str, MergeableGroup]) -> None:
        scalars: dict[str, float] = {}
        for name, group in due.items():
            d = self._distances(group)
            live = group.live
            # A random order depends on the number of the merge alone, so that a resumed run makes the same merges.
            seed = f"{self.seed} {name} {group.num_merges}"
            rows: list[list[float]] = d.tolist()
            merge = choose(rows, group.owners, candidates=self.candidates, order=self.order, seed=seed)
            if merge is None:  # a single B is left
                continue
            mean_distance = d[live][:, live].sum().item() / (len(live) * (len(live) - 1))
            group.tie(merge.lower, merge.upper)
            num = num_values(adapter.live_parameters().values())
            record = MergeRecord(
                step=self._last_step,
                group=name,
                layer=group.layers[merge.lower],
                uses=group.layers[merge.upper],
                distance=merge.distance,
                next_distance=merge.next_distance,
                groups_left=len(group.live),
                live_parameters=num,
                fraction_of_lora=num / num_lora_values(adapter.slots, self.lora_rank),
            )
            self._report(trainer, record)
            scalars |= {f"merge/distance/{name}": merge.distance, f"merge/mean_distance/{name}": mean_distance}
            if merge.next_distance is not None:
                scalars[f"merge/next_distance/{name}"] = merge.next_distance
        self._check_agreement(trainer, adapter.mergeable_groups())
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=self._last_step)
        self._log_counts(trainer, adapter)

    def _distances(self, group: MergeableGroup) -> Tensor:
        """Distances of all layers [L, L]; a merged layer has a meaningful distance only between running means."""
        A = full_fp32([group.shared_a()])[0] if self.metric == "effective" else None
        if self.score == "mean":
            return distances(group.mean, self.metric, A)
        current = torch.zeros_like(group.mean)
        current[group.live] = torch.stack(group.compared(full_fp32(group.sources())))
        return distances(current, self.metric, A)

    def _check_agreement(self, trainer: Trainer, groups: Mapping[str, MergeableGroup]) -> None:
        """Stop every rank if the owner maps differ: the ranks would train different models.

        Raises:
            RuntimeError: The owner maps differ.
        """
        # A hash is compared rather than the maps: all_gather takes tensors of equal shape.
        owners = json.dumps({name: group.owners for name, group in groups.items()}).encode()
        mine = torch.tensor(zlib.crc32(owners), dtype=torch.int64, device=trainer.strategy.root_device)
        hashes = trainer.strategy.all_gather(mine).flatten().tolist()
        if len(set(hashes)) > 1:
            raise RuntimeError(
                f"the ranks merged different layers by optimizer step {trainer.global_step} (owner maps {hashes}); "
                "resume from the last checkpoint."
            )

    # --- reporting ---------------------------------------------------------------------------------------------

    def _report(self, trainer: Trainer, record: MergeRecord) -> None:
        self._records.append(record)
        if not trainer.is_global_zero:
            return
        with (run_folder(trainer) / FILE).open("a", encoding="utf-8") as file:
            file.write(record.line())
        for tensorboard in tensorboards(trainer):
            tensorboard.add_text("merge", str(record), record.step)
        rich.get_console().print(f"Merge: {record}", highlight=False, soft_wrap=True)

    def _log_counts(self, trainer: Trainer, adapter: Adapter) -> None:
        num = num_values(adapter.live_parameters().values())
        metrics = {f"merge/groups/{name}": float(len(group.live)) for name, group in adapter.mergeable_groups().items()}
        metrics["merge/live"] = float(num)
        metrics["merge/fraction_of_lora"] = num / num_lora_values(adapter.slots, self.lora_rank)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the merges so far; called in pauses of the training, since a picture takes longer than a merge."""
        if len(self._records) == self._num_drawn or not trainer.is_global_zero:
            return
        self._num_drawn = len(self._records)
        adapter = adapter_of(pl_module)
        groups = adapter.mergeable_groups()
        layers = {name: group.layers for name, group in groups.items()}
        ties: dict[str, list[Tie]] = {name: [] for name in groups}
        for record in self._records:
            ties[record.group].append(Tie(record.step, record.layer, record.uses))
        when = f"step {trainer.global_step:,}"
        for tensorboard in tensorboards(trainer):
            owners = sharing_map(owners_of(adapter), title=f"whose B, {when}")
            tensorboard.add_figure("merge/map", owners, trainer.global_step)
            tree = merge_tree(layers, ties, title=f"merge tree, {when}")
            tensorboard.add_figure("merge/tree", tree, trainer.global_step)
