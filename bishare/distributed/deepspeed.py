"""ZeRO-1, 2 and 3 on GPUs and CPUs: DeepSpeed under Lightning, for adapters with shared parameters.

Rajbhandari et al., 2020 (arXiv:1910.02054). Only the adapter is trained, so fp32 values and moments are small, tens of
MB at 13B parameters. Each process holds a piece. A checkpoint is a single file with whole values, in the format of a
run on one process; any number of processes can resume from the file.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Literal

import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor, distributed, nn
from torch.optim import Optimizer
from typing_extensions import override

from bishare.distributed.deepspeed_build import refuse_abandoned_build
from bishare.distributed.partitions import full_fp32, full_shape, write_fp32
from bishare.errors import UserError


class BiShareDeepSpeed(DeepSpeedStrategy):
    """DeepSpeed ZeRO for adapters, on GPUs and CPUs alike.

    Args:
        stage: The partitioned values: 1 the optimizer's state, 2 gradients too, 3 the frozen base too.
    """

    def __init__(self, stage: Literal[1, 2, 3] = 2) -> None:
        if stage not in (1, 2, 3):
            raise UserError(f"stage is {stage}; ZeRO has stages 1, 2 and 3.")
        super().__init__(
            stage=stage,
            # With overlap, a shared parameter's gradient may be reduced before all of its parts are added.
            overlap_comm=False,
            exclude_frozen_parameters=True,
            logging_batch_size_per_gpu=1,  # for DeepSpeed's own log; without a value the loader is built early
        )
        self._groups: list[list[nn.Parameter]] = []  # the optimizer's groups before DeepSpeed flattens them
        self._hugging_face: Any = None

    # --- on the CPU too ----------------------------------------------------------------------------------------

    @property
    def _on_cpu(self) -> bool:
        return isinstance(self.accelerator, CPUAccelerator)

    @property
    @override
    def root_device(self) -> torch.device:
        device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device  # DeepSpeed asks for a device number

    @override
    def setup_environment(self) -> None:
        if self._on_cpu:
            _use_cpu()
            DDPStrategy.setup_environment(self)  # leaves out Lightning's refusal of anything but CUDA
        else:
            super().setup_environment()

    @override
    def setup_distributed(self) -> None:
        if self._on_cpu:
            refuse_abandoned_build()
            self.set_world_ranks()
            self._init_deepspeed_distributed()
        else:
            super().setup_distributed()

    # --- the model ---------------------------------------------------------------------------------------------

    @contextmanager
    @override
    def model_sharded_context(self) -> Iterator[None]:
        self._init_config_if_needed()
        if self.zero_stage_3 and self._hugging_face is None:
            from transformers.integrations.deepspeed import HfDeepSpeedConfig

            # While this object lives, from_pretrained partitions the weights while reading, and generate keeps the
            # processes in step.
            self._hugging_face = HfDeepSpeedConfig(self.config)  # type: ignore[no-untyped-call]
        with super().model_sharded_context():
            yield

    @override
    def _setup_model_and_optimizer(
        self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: Any = None
    ) -> tuple[Any, Optimizer]:
        assert optimizer is not None
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        parameters = list(chain.from_iterable(self._groups))
        start = self._of_rank_zero([p.detach().float() for p in parameters])
        self._prepare(parameters)
        engine, zero_optimizer = super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)
        write_fp32(parameters, start)  # under bf16, DeepSpeed made the masters from rounded values
        self._gather(parameters)
        return engine, zero_optimizer

    @override
    def _initialize_deepspeed_inference(self, model: nn.Module) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        self._prepare(parameters)
        super()._initialize_deepspeed_inference(model)
        self._gather(parameters)

    def _prepare(self, parameters: Sequence[nn.Parameter]) -> None:
        """Set the options of ZeRO that depend on the adapter's parameters, before DeepSpeed takes these over."""
        assert isinstance(self.config, dict)
        zero, sizes = self.config["zero_optimization"], [full_shape(p).numel() for p in parameters]
        # ZeRO-3 gathers a module's own parameters before the module's forward. Shared stores are read by further
        # modules, so every adapter tensor stays whole on every process.
        zero["stage3_param_persistence_threshold"] = max(sizes)
        # Buffers of this many values are allocated; DeepSpeed's default is 200 million.
        zero["reduce_bucket_size"] = zero["allgather_bucket_size"] = sum(sizes)
        if self.zero_stage_3 and self.config.get("bf16", {}).get("enabled"):
            for parameter in parameters:
                parameter.data = parameter.data.bfloat16()  # DeepSpeed wants a single type beside partitioned weights

    def _gather(self, parameters: Sequence[nn.Parameter]) -> None:
        if self.zero_stage_3:
            parameters[0].all_gather(list(parameters))  # type: ignore[attr-defined]  # whole from the first forward on

    def _of_rank_zero(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The values of rank 0, sent to all ranks as a single flat buffer."""
        flat = torch.cat([value.flatten() for value in values]).to(self.root_device)
        distributed.broadcast(flat, src=0)
        parts = torch.split(flat, [value.numel() for value in values])
        return [part.view_as(value) for part, value in zip(parts, values, strict=True)]

    @override
    def teardown(self) -> None:
        self._hugging_face = None  # the next model of this process may belong to a different strategy
        super().teardown()

    # --- the step ----------------------------------------------------------------------------------------------

    @override
    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        # Lightning has divided the loss by the accumulation already; DeepSpeed would divide again.
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    # --- checkpoints: one file, in the format of one process ---------------------------------------------------

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        module = self.lightning_module
        assert module is not None
        names = dict(module.named_parameters(remove_duplicate=False))
        # Buffers as they are, and trained parameters whole; the frozen base is not stored.
        state = {name: value for name, value in module.state_dict().items() if name not in names}
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        return state | dict(zip(trained, full_fp32(list(trained.values())), strict=True))

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's whole state, numbered as in ``torch.optim`` on a single process."""
        base = _base(optimizer)
        self._link_states(optimizer)
        state: dict[int, dict[str, Any]] = {}
        groups: list[dict[str, Any]] = []
        num_parameters = 0
        for flat, group, parameters in zip(_flats(optimizer), base.param_groups, self._groups, strict=True):
            numbers = list(range(num_parameters, num_parameters + len(parameters)))
            num_parameters += len(parameters)
            groups.append({key: value for key, value in group.items() if key != "params"} | {"params": numbers})
            if not (own := base.state.get(flat)):
                continue  # before the first step
            for number in numbers:
                state[number] = {}
            for key, value in own.items():
                if value.shape == flat.shape:
                    whole = full_fp32(parameters, state=key)
                else:  # the number of steps
                    whole = [value.clone() for _ in numbers]
                for number, part in zip(numbers, whole, strict=True):
                    state[number][key] = part
        return {"state": state, "param_groups": groups}

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any | None = None) -> None:
        DDPStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    @override
    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        return DDPStrategy.load_checkpoint(self, checkpoint_path, weights_only)

    @property
    @override
    def lightning_restore_optimizer(self) -> bool:
        return True

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module, state = self.lightning_module, checkpoint["state_dict"]
        assert module is not None
        buffers = dict(state)
        parameters: list[nn.Parameter] = []
        values: list[Tensor] = []
        for name, parameter in module.named_parameters():
            if name in state:
                parameters.append(parameter)
                values.append(buffers.pop(name).to(self.root_device))
        write_fp32(parameters, values)
        module.load_state_dict(buffers, strict=False)

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        (optimizer,), (saved,) = self.optimizers, checkpoint["optimizer_states"]
        base = _base(optimizer)
        moments: dict[str, dict[nn.Parameter, Tensor]] = {}
        for flat, group, parameters, saved_group in zip(
            _flats(optimizer), base.param_groups, self._groups, saved["param_groups"], strict=True
        ):
            group.update({**saved_group, "params": group["params"]})
            for number, parameter in zip(saved_group["params"], parameters, strict=True):
                for key, value in saved["state"].get(number, {}).items():  # empty before the first step
                    if value.dim() == 0:  # the number of steps
                        base.state[flat][key] = value.clone().to(flat.device)
                    else:
                        base.state[flat].setdefault(key, torch.zeros_like(flat))
                        moments.setdefault(key, {})[parameter] = value.to(flat.device)
        self._link_states(optimizer)
        # Only linked moments can be written.
        for key, values in moments.items():
            write_fp32(list(values), list(values.values()), state=key)

    def _link_states(self, optimizer: Optimizer) -> None:
        """Link each parameter to its moments, which ZeRO-1 and 2 read through views.

        DeepSpeed creates the views after the step of the first parameter group, when later groups have no moments yet.
        """
        state = _base(optimizer).state
        for flat, parameters in zip(_flats(optimizer), self._groups, strict=True):
            for parameter in parameters:
                if (mapping := getattr(parameter, "_hp_mapping", None)) is not None and flat in state:
                    mapping.set_optim_state_fragment(flat, state[flat])


def _use_cpu() -> None:
    """Let DeepSpeed run on the CPU, on machines with GPUs too."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    from deepspeed.accelerator import get_accelerator, set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    if get_accelerator().device_name() != "cpu":
        set_accelerator(CPU_Accelerator())


def _base(optimizer: Any) -> Optimizer:
    """The torch optimizer inside DeepSpeed's."""
    base = optimizer.optimizer
    assert isinstance(base, Optimizer)
    return base


def _flats(optimizer: Any) -> list[Tensor]:
    """The fp32 masters of this process, a flat tensor per parameter group, as stepped by the torch optimizer."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):  # ZeRO-3
        return list(optimizer.fp32_partitioned_groups_flat)
    return list(optimizer.single_partition_of_fp32_groups)
