"""Runs a suite on a model in memory through lm-evaluation-harness: the harness makes prompts and counts scores.

Log-likelihoods are computed here. Requests go through the model in packs without padding; requests with the same
input tokens (answers A, B, C, D) share a forward pass; the head is applied to the answers' tokens only.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]  # its stubs are a package of their own
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from bishare.commands.evaluate.catalog import FOLDER, Suite
from bishare.data.encoding import NO_LABEL
from bishare.data.packing import pack
from bishare.errors import UserError
from bishare.models.head import head_of
from bishare.models.packed_attention import can_pack, model_inputs, use_packed_attention

CHUNK_VALUES = 2**23
"""Logits in memory at a time: 32 MiB in fp32."""

Request = tuple[tuple[str, str], list[int], list[int]]
"""Texts of context and continuation, tokens of the context, tokens of the continuation."""


def run_suite(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    suite: Suite,
    *,
    data: str | None,
    shots: int,
    limit: int | None,
    batch_size: int,
) -> dict[str, Any]:
    """Run the tasks of a suite.

    Args:
        model: In evaluation mode, with or without an adapter.
        tokenizer: The base model's.
        suite: The tasks.
        data: Folder of local rows; None for the hub's data.
        shots: Examples before every question.
        limit: Questions of each task, counted from the first; None for all.
        batch_size: Requests in each forward pass.

    Returns:
        The results of ``lm_eval.simple_evaluate``, with every request under ``samples``.

    Raises:
        UserError: The hub's data can't be loaded.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    use_packed_attention(model)
    lm = PackedLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    # The harness shows a bar for every task while prompts are made and tokenised, which takes no time.
    with mock.patch("lm_eval.api.task.tqdm", _no_bar), mock.patch("lm_eval.api.model.tqdm", _no_bar):
        results = lm_eval.simple_evaluate(
            lm,
            tasks=[suite.local_task] if data else list(suite.hub_tasks),
            task_manager=local_tasks(data) if data else HubTasks(suite),
            num_fewshot=shots,
            limit=limit,
        )
    assert isinstance(results, dict)
    return results


def local_tasks(data: str) -> TaskManager:
    """The harness's index of the local tasks on the rows of a folder."""
    return TaskManager(include_path=str(FOLDER), include_defaults=False, metadata={"data": data})


class HubTasks(TaskManager):  # type: ignore[misc]  # lm_eval has no types
    """The harness's index of its own tasks, limited to a suite."""

    def __init__(self, suite: Suite) -> None:
        root = Path(lm_eval.__file__).parent / "tasks"
        super().__init__(include_path=[str(root / folder) for folder in suite.folders], include_defaults=False)

    @override
    def load(self, task_list: Any) -> Any:
        """Load tasks and download their data."""
        try:
            return super().load(task_list)
        except Exception as error:
            # HTTP clients, file systems, parsers and datasets raise errors without a common class.
            raise UserError(
                f"the data of {', '.join(task_list)} can't be loaded from the hub ({' '.join(str(error).split())}); "
                "check the network, or give a folder of local rows with --data."
            ) from error


def _no_bar(items: Iterable[Any], **_: object) -> Iterable[Any]:
    return items


class PackedLM(HFLM):  # type: ignore[misc]  # lm_eval has no types
    """The harness's model with log-likelihoods computed in packs, for models and heads that allow packs."""

    @override
    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding would give the continuation."""
        head = head_of(self.model)
        if head is None or not can_pack(self.model):
            plain: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            return plain
        readers = self._requests_by_input(requests)
        # Sorted, neighbours share the most tokens: the choices of a question, the shots of a task.
        order = sorted(readers)
        results: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(requests), desc="answers", disable=disable_tqdm) as bar:
            for first in range(0, len(order), self.batch_size):
                inputs = order[first : first + self.batch_size]
                answers = self._answers_to(inputs, readers, requests)
                hidden = [answer.hidden for answer in answers]
                wanted = [answer.tokens for answer in answers]
                scores = _scores(head, hidden, wanted)
                results |= zip((answer.number for answer in answers), scores, strict=True)
                bar.update(len(answers))
        return [results[index] for index in range(len(requests))]

    def _requests_by_input(self, requests: Sequence[Request]) -> dict[tuple[int, ...], list[int]]:
        """Numbers of the requests, by the tokens that the model reads for them."""
        readers: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            # The last token is predicted, not read; a long context loses its beginning.
            tokens = (context + continuation)[-(self.max_length + 1) : -1]
            readers.setdefault(tuple(tokens), []).append(index)
        return readers

    def _answers_to(
        self,
        inputs: Sequence[tuple[int, ...]],
        readers: Mapping[tuple[int, ...], Sequence[int]],
        requests: Sequence[Request],
    ) -> list["_Answer"]:
        """Run the model over some inputs, and cut the states of every answer.

        Args:
            inputs: Token sequences of a batch.
            readers: By input, numbers of the requests.
            requests: All requests.
        """
        longest = []
        for tokens in inputs:
            longest.append(max(len(requests[index][2]) for index in readers[tokens]))
        answers = []
        for tokens, states in zip(inputs, self._hidden(inputs, longest), strict=True):
            for index in readers[tokens]:
                answer = torch.tensor(requests[index][2], device=self.device)
                answers.append(_Answer(index, answer, states[-len(answer) :]))
        return answers

    def _hidden(self, sequences: Sequence[tuple[int, ...]], needed: Sequence[int]) -> tuple[Tensor, ...]:
        """The last hidden states [at least ``needed``, d] of each token sequence."""
        ids = [torch.tensor(tokens) for tokens in sequences]
        labels = []
        for row, num in zip(ids, needed, strict=True):
            # Packs may share a prefix; a label keeps the states that are needed for each sequence.
            labels.append(torch.where(torch.arange(len(row)) > len(row) - num, row, NO_LABEL))
        batch = {name: values.to(self.device) for name, values in pack(ids, labels).items()}
        hidden: Tensor = self.model.base_model(**model_inputs(batch), use_cache=False)[0][0]
        return torch.split(hidden, batch["lengths"].tolist())


class _Answer(NamedTuple):
    """The continuation of a request."""

    number: int
    """Place of the request in the list of all."""
    tokens: Tensor  # [m]
    hidden: Tensor  # [m, d], the states before the tokens


def _scores(head: nn.Module, hidden: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[tuple[float, bool]]:
    """Log-likelihood of each answer, and whether every token of the answer is the likeliest.

    Args:
        head: From [.., d] to logits [.., v].
        hidden: The states before the answers' tokens, [m_i, d].
        wanted: The answers' tokens, [m_i].
    """
    chosen, likeliest = [], []
    rows = max(1, CHUNK_VALUES // getattr(head, "out_features", 2**17))
    for states, tokens in zip(_chunks(hidden, rows), _chunks(wanted, rows), strict=True):
        logits = head(states).float()
        chosen.append(logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0])
        likeliest.append(logits.argmax(-1) == tokens)
    sizes = [len(tokens) for tokens in wanted]
    parts = zip(_chunks(chosen, sizes), _chunks(likeliest, sizes), strict=True)
    return [(float(likelihood.sum()), bool(greedy.all())) for likelihood, greedy in parts]


def _chunks(parts: Sequence[Tensor], sizes: int | list[int]) -> tuple[Tensor, ...]:
    """The parts joined along the first dimension and split into other sizes."""
    return torch.split(torch.cat(list(parts)), sizes)
