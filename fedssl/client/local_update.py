"""What a client does in a round: a plain, deterministic function of task, data and seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fedssl.client.bank import ActivationBank
from fedssl.client.client_banks import ClientBanks, TrainingData
from fedssl.client.local_step import LocalStep
from fedssl.client.stacked_clients import ClientStack, train_stack
from fedssl.client.start import StartRule
from fedssl.client.step_costs import CostBook, StepKey
from fedssl.client.training_loop import LoopReport, MemoryPlans, NonFiniteLossError, train_epochs
from fedssl.data.datasets import SampleSet
from fedssl.protocol.compression import Compression, pack_update
from fedssl.protocol.messages import Failure, Parts, Result, Task, Tensors, flatten, unflatten
from fedssl.protocol.parts import PartitionedModel
from fedssl.utils.files import check_same
from fedssl.utils.seeding import derive_seed, torch_generator
from layerwise import Stage
from layerwise.memory import InfeasibleBudgetError
from ssl_methods.alignment import AlignmentState


@dataclass
class ClientState:
    """What one client keeps between rounds.

    Args:
        layers: Names of the parts it trained.
        alignment: What the alignment remembers of them.
        weights: Their tensors after training, by ``part/name``; empty without a start rule.
        notes: Numbers that the start rule keeps.
        lost: What the compression of its updates lost so far, by part; empty without one.
        bank: What its activation bank was made from, so that it is not counted again; empty if there is none.
    """

    layers: list[str]
    alignment: AlignmentState | None
    weights: Tensors
    notes: dict[str, float]
    bank: str = ""
    lost: Tensors = field(default_factory=dict)


class LocalUpdate:
    """One resident model that trains any number of clients, one after the other.

    Args:
        model: The resident model; its weights are overwritten by every task.
        epochs: Local epochs a round.
        batch_size: Images a step.
        seed: Seed of the run.
        recall: Gives a frozen part that the client holds, by part name and content id.
        step: Losses beyond the method's own.
        start: What clients start a round from; ``None``: the global weights.
        plans: Keep local steps within a memory budget; ``None``: there is none.
        bank: Clients train from stored outputs of the frozen prefix; ``None``: they run it in every step.
        compression: Packs what clients send; ``None`` sends the weights.
        clients_at_once: Most clients that are trained together with stacked weights.

    Attributes:
        client_states: What clients keep between rounds, by id.
    """

    def __init__(
        self,
        model: PartitionedModel,
        *,
        epochs: int,
        batch_size: int,
        seed: int,
        recall: Callable[[str, str], Tensors],
        step: LocalStep = LocalStep(),  # noqa: B008 (frozen)
        start: StartRule | None = None,
        plans: MemoryPlans | None = None,
        bank: ActivationBank | None = None,
        compression: Compression | None = None,
        clients_at_once: int = 1,
    ) -> None:
        self.model = model
        self.epochs = epochs
        self.batch_size = batch_size
        self.step = step
        self.start = start
        self.seed = seed
        self.plans = plans
        self.compression = compression
        self.clients_at_once = clients_at_once
        self.banks = ClientBanks(bank, seed) if bank else None
        self.book = CostBook()
        self._recall = recall
        self._loaded: dict[str, str] = {}
        self._stage: Stage | None = None
        self.client_states: dict[int, ClientState] = {}

    def __call__(self, task: Task, images: SampleSet) -> Result | Failure:
        """Train on one client's images from the task's weights.

        After an exception the next client trains as if there had been none.
        """
        try:
            return self._attempt(task, images)
        except BaseException:
            self._clean()
            raise

    def groups(self, tasks: Sequence[Task], sizes: Sequence[int]) -> Iterator[list[Task]]:
        """Divide tasks into groups that can be trained together; each must be trained before the next is asked for.

        Args:
            tasks: Tasks of one round.
            sizes: Number of samples of every client.
        """
        alike: dict[tuple[Stage, int], list[Task]] = {}
        for task in tasks:
            alike.setdefault((task.stage, sizes[task.client_id]), []).append(task)
        for (stage, size), group in alike.items():
            # The first client of a kind trains alone: its steps are counted, and those of the others cost the same.
            while group and not self._counted(stage, size):
                yield [group.pop(0)]
            if group:
                yield group

    def together(self, tasks: Sequence[Task], samples: Sequence[SampleSet]) -> list[Result | Failure]:
        """Train the clients of a group, with stacked weights if there are several; the results are for keeps.

        After an exception the next clients train as if there had been none.
        """
        if len(tasks) == 1:
            answer = self(tasks[0], samples[0])
            if isinstance(answer, Failure):
                return [answer]
            kept = {key: tensor.clone() for key, tensor in flatten(answer.parts).items()}
            return [replace(answer, parts=unflatten(kept))]
        try:
            return self._attempt_together(tasks, samples)
        except BaseException:
            self._clean()
            raise

    def _attempt_together(self, tasks: Sequence[Task], samples: Sequence[SampleSet]) -> list[Result | Failure]:
        first, method = tasks[0], self.model.method
        self._receive(first)
        # All clients start from the weights that the server sent, so what the first begins with is that of all.
        self._start(first, None)
        stack, key, factor = ClientStack(method), StepKey.at(first.stage), first.lr_factor
        with stack.of(len(tasks)):
            parameters, sent = self.model.parameters(first.correction), [flatten(task.correction) for task in tasks]
            method.corrections = [
                (own, torch.stack([each[name] for each in sent]).to(own.device)) for name, own in parameters.items()
            ]
            generators = [self._generators(task) for task in tasks]
            reports = train_stack(
                stack, method, samples, self.epochs, self.batch_size, generators, self.book, key, factor
            )
            trained = self.model.read(self.model.trained_names(first.stage))
        method.corrections = []
        answers: list[Result | Failure] = []
        for place, (task, report) in enumerate(zip(tasks, reports, strict=True)):
            parts = {part: {name: each[place] for name, each in own.items()} for part, own in trained.items()}
            answers.append(self._answer(task, parts, samples[place], report))
        return answers

    def _counted(self, stage: Stage, size: int) -> bool:
        batches = {min(size, self.batch_size), size % self.batch_size} - {0, 1}
        return all(replace(StepKey.at(stage), batch_size=batch) in self.book.costs for batch in batches)

    def _attempt(self, task: Task, images: SampleSet) -> Result | Failure:
        self._receive(task)
        state = self._state(task)
        self._start(task, state)
        with torch.random.fork_rng():
            # Dropout layers know no generator but the global one, which the fork puts back.
            torch.manual_seed(derive_seed(self.seed, "local", task.round, task.client_id))
            report: LoopReport | NonFiniteLossError
            try:
                report = self._train(task, images, state)
            except NonFiniteLossError as error:
                report = error
            except InfeasibleBudgetError as error:
                # A budget that changes may suffice in a later round, so the client sits this one out.
                return Failure(task.client_id, str(error), skipped=self.plans is not None and self.plans.changing)
        # Not copied: the engine lets nobody train here before the server has taken the result.
        return self._answer(task, self.model.read(self.model.trained_names(task.stage)), images, report)

    def _answer(
        self, task: Task, trained: Parts, images: SampleSet, report: LoopReport | NonFiniteLossError
    ) -> Result | Failure:
        """Make the client's answer of what it has trained."""
        if isinstance(report, NonFiniteLossError):
            return Failure(task.client_id, str(report))
        if report.steps == 0:
            return Failure(task.client_id, f"{len(images)} images are too few to contrast", skipped=True)
        parts, lost = self._packed(task, trained)
        self._remember(task, lost)
        return self._result(task, parts, len(images), report)

    def _receive(self, task: Task) -> None:
        for name, content in task.frozen_ids.items():
            # Client after client needs the same frozen parts: they are copied only when they change.
            if self._loaded.get(name) != content:
                self.model.write({name: task.frozen.get(name) or self._recall(name, content)})
                self._loaded[name] = content
        self.model.write(task.active)
        for name in task.active:
            # Training will change it, so that what lies here afterwards has no known content.
            self._loaded.pop(name, None)
        # Only on a change: attaching copies the active part for targets and alignment, which clients just refill.
        if task.stage != self._stage:
            self.step.attach(self.model, task.stage)
            self._stage = task.stage

    def _clean(self) -> None:
        """Forget what an interrupted step left: gradients, which would be added to the next, and half-read parts."""
        for parameter in self.model.method.parameters():
            parameter.grad = None
        self._loaded, self._stage = {}, None

    def _start(self, task: Task, state: ClientState | None) -> None:
        method = self.model.method
        self.model.client_state.reset()
        _, method.generator = self._generators(task)
        parameters = self.model.parameters(task.correction)
        sent = flatten(task.correction).items()
        corrections = [(parameters[key], t.to(parameters[key].device, non_blocking=True)) for key, t in sent]
        # Before the start rule writes: alignment and proximal term hold on to the weights that were received.
        self.step.begin_client(method, state.alignment if state else None, corrections)
        if self.start and state:
            weights = self.start.begin_client(flatten(task.active), state.weights, state.notes)
            self.model.write(unflatten(weights))
        # After it: momentum targets start as copies of the weights that training starts from.
        method.begin_client()

    def _train(self, task: Task, images: SampleSet, state: ClientState | None) -> LoopReport:
        shuffle, _ = self._generators(task)
        method, key = self.model.method, StepKey.at(task.stage)
        plans = self.plans.begin(task, method) if self.plans else None
        size, book = self.batch_size, self.book
        banked = self.banks(task, method, images, size, book, key) if self.banks else nullcontext(TrainingData(images))
        remembers = state is not None and state.alignment is not None
        with banked as source:
            key = replace(key, remembers=remembers, banked=source.banked)
            report = train_epochs(method, source.images, self.epochs, size, shuffle, book, key, plans, task.lr_factor)
        before = self.client_states.get(task.client_id)
        # Counted once for each content: a process that resumes, or takes a client over, fills the bank a second time.
        filled = before is None or before.bank != self._bank(task)
        return replace(report, macs=report.macs + (source.macs if filled else 0))

    def _generators(self, task: Task) -> tuple[torch.Generator, torch.Generator]:
        """Return the generators that shuffle and augment a client's samples."""
        ids, device = (task.round, task.client_id), self.model.method.device
        return torch_generator(self.seed, "shuffle", *ids), torch_generator(self.seed, "augment", *ids, device=device)

    def _bank(self, task: Task) -> str:
        return self.banks.rule.content(task) if self.banks else ""

    def _state(self, task: Task) -> ClientState | None:
        """Return what the client remembers, if it is of the layers that it trains now."""
        state = self.client_states.get(task.client_id)
        return state if state and state.layers == list(task.active) else None

    def _packed(self, task: Task, trained: Parts) -> tuple[Parts, Tensors]:
        """Return what the client sends, and what its compression has lost."""
        if not self.compression:
            return trained, {}
        state, weights = self._state(task), self.model.parameters(trained).keys()
        return pack_update(self.compression, trained, task.active, weights, state.lost if state else {})

    def _remember(self, task: Task, lost: Tensors) -> None:
        bank = self._bank(task)
        before, alignment = self._state(task), self.step.remember(self.model.method)
        weights = flatten(self.model.read(task.active)) if self.start else {}
        # Off the GPU, as there are as many as clients; cloned, because on the CPU they would still be the model's own.
        kept = {key: tensor.detach().cpu().clone() for key, tensor in weights.items()}
        lost = {part: tensor.cpu() for part, tensor in lost.items()}
        if kept or alignment is not None or bank or lost:
            notes = before.notes if before else {}
            self.client_states[task.client_id] = ClientState(list(task.active), alignment, kept, notes, bank, lost)

    def _result(self, task: Task, parts: Parts, num_images: int, report: LoopReport) -> Result:
        return Result(
            task.client_id,
            parts,
            num_images,
            report.loss,
            report.squared_loss,
            report.macs,
            report.activation_bytes,
            report.steps,
        )

    def settings(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share with its checkpoint."""
        return {
            "method": type(self.model.method).__name__,
            "local epochs": self.epochs,
            "batch size": self.batch_size,
            "micro-batch": self.model.micro_batch,
            "proximal": self.step.proximal,
            "alignment": type(self.step.alignment).__name__,
            "start": type(self.start).__name__,
            "bank": self.banks.rule.settings() if self.banks else None,
        } | ({"compression": repr(self.compression)} if self.compression else {})

    def state_dict(self) -> dict[str, Any]:
        """Return what clients remember between rounds, and the step costs measured so far."""
        client_states = {client: dict(vars(kept)) for client, kept in self.client_states.items()}
        return self.book.state_dict() | {"client_states": client_states, "settings": self.settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            ValueError: It comes from a run with other local settings.
        """
        check_same(state["settings"], self.settings())
        self.book.load_state_dict(state)
        self.client_states = {client: ClientState(**kept) for client, kept in state["client_states"].items()}
