"""Training of a head, frozen or with its encoder, and the choice of the epoch that counts.

Every random choice is a function of the seed, the epoch and the place in it: nothing is kept of generators, and a
step after `load_state_dict` is bit for bit the one that would have followed. On a GPU it is so but for the order in
which torch adds up gradients of resized and pooled maps. A team of ranks takes the steps that one rank would take, to
rounding: each computes a part of every slice, and all have the same weights after it.
Letters: B faces of a slice, K maps, H W places of a map.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from trainer.contract.recipe import Recipe, Selection
from trainer.evaluation.readers.record import Record
from trainer.evaluation.stages.heads import draw_dropout
from trainer.evaluation.stages.network import Network
from trainer.evaluation.stages.norm import settle, share, take_statistics
from trainer.evaluation.stages.splits import Splits
from trainer.evaluation.stages.tasks import Example, Task
from trainer.evaluation.team import ALONE, Team, part, sum_gradients

READERS = 8


class Diverged(RuntimeError):
    """A loss that is no number: the fit has no result."""


@dataclass(frozen=True)
class Epoch:
    """What is known after an epoch, counted from 0."""

    epoch: int
    loss: float
    """Mean over the epoch's steps."""
    test: dict[str, float]
    validation: dict[str, float]
    """Empty where nothing is chosen by it."""


@dataclass(frozen=True)
class Fitted:
    """The numbers of a fit, and how their epoch was chosen."""

    selection: Selection
    epoch: int
    metrics: dict[str, float]
    """On the test split, with the averaged weights."""
    note: str

    @property
    def logged(self) -> dict[str, float]:
        """The metrics by names that say how the epoch was chosen: best_on_test/nme_diag."""
        return {f"{self.selection.value}/{name}": value for name, value in self.metrics.items()}


class Fit:
    """A fit between two steps; of a team every rank has one, and calls the same methods."""

    def __init__(
        self, network: Network, task: Task, splits: Splits, recipe: Recipe, device: torch.device, team: Team = ALONE
    ) -> None:
        """`splits`: with validation faces where the recipe selects by them, else ValueError.

        `team`: of at most as many ranks as a slice has faces, else ValueError.
        """
        if recipe.selection is Selection.BEST_ON_VALIDATION and not splits.validation:
            raise ValueError("the recipe selects by validation, and the splits have no faces to validate on")
        if team.size > recipe.slice:
            raise ValueError(f"{team.size} ranks cannot share a slice of {recipe.slice} faces")
        self.network = network.to(device)
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        share(self.network, team)
        self.team = team
        self.task = task
        self.splits = splits
        self.recipe = recipe
        self.device = device
        self.optimizer = _optimizer(self.network, recipe)
        self.history: list[Epoch] = []
        self.losses: list[float] = []
        """Of the steps that the epoch under way has done."""

    @property
    def position(self) -> int:
        """Steps that have been done, and epochs that have been measured: grows with everything that is done."""
        steps = -(-self.splits.epoch_length // self.recipe.batch)
        return len(self.history) * (steps + 1) + len(self.losses)

    def run(self, on_epoch: Callable[[Epoch], object], tick: Callable[[], object] = lambda: None) -> Fitted:
        """All epochs that are left, each reported as it ends. Raises Diverged, and what `tick` raises."""
        while len(self.history) < self.recipe.epochs:
            on_epoch(self.run_epoch(tick))
        return self.result()

    def run_epoch(self, tick: Callable[[], object] = lambda: None) -> Epoch:
        """The next epoch, or what is left of it, and its metrics. Raises Diverged.

        `tick` is called between steps and between measurements, by all ranks at the same ones, where the state may be
        saved; what it raises ends the epoch there.
        """
        epoch = len(self.history)
        for group in self.optimizer.param_groups:
            group["lr"] = group["first_lr"] * self.recipe.rate_factor(epoch)
        self.network.train()
        for batch in self._batches(epoch, len(self.losses)):
            self.losses.append(self._step(epoch, len(self.losses), batch))
            tick()
        test = self.measure(self.splits.test, tick)
        chosen_by_validation = self.recipe.selection is Selection.BEST_ON_VALIDATION
        validation = self.measure(self.splits.validation, tick) if chosen_by_validation else {}
        self.history.append(Epoch(epoch, sum(self.losses) / len(self.losses), test, validation))
        self.losses = []
        return self.history[-1]

    @torch.no_grad()
    def measure(self, records: Sequence[Record], tick: Callable[[], object] = lambda: None) -> dict[str, float]:
        """Metrics of the averaged weights."""
        score = self.task.score()
        pieces = [records[first : first + self.recipe.slice] for first in range(0, len(records), self.recipe.slice)]
        mine = pieces[self.team.rank :: self.team.size]
        jobs = ([partial(self.task.example, record, None) for record in piece] for piece in mine)
        found: list[list[torch.Tensor]] = []
        for examples in _read_ahead(jobs):
            images = torch.stack([example.image_CSS for example in examples]).to(self.device)
            logits = self.average(images).cpu()
            found.append([score.read(example, logit_KHW) for example, logit_KHW in zip(examples, logits, strict=True)])
            tick()
        if len(mine) * self.team.size < len(pieces):
            tick()  # others have one piece more
        # In the order of the records: sums over them do not depend on who has measured which.
        everyones = self.team.collect(found)
        for number, piece in enumerate(pieces):
            turn, rank = divmod(number, self.team.size)
            for record, what in zip(piece, everyones[rank][turn], strict=True):
                score.add(record, what)
        return score.metrics()

    def result(self) -> Fitted:
        """Raises ValueError before the last epoch: which one counts is not known until then."""
        if len(self.history) < self.recipe.epochs:
            raise ValueError(f"{len(self.history)} of {self.recipe.epochs} epochs are done; there is no result yet")
        how = self.recipe.selection
        chosen, note = self.history[-1], f"epoch {len(self.history)}, the last one, fixed before the fit"
        if how is not Selection.LAST:
            chosen = self._best("test" if how is Selection.BEST_ON_TEST else "validation")
            note = f"epoch {chosen.epoch + 1} of {len(self.history)}, the best by {self.task.primary}"
            note += (
                " on the test split itself, as most published numbers: too good an estimate of unseen faces"
                if how is Selection.BEST_ON_TEST
                else " on faces set aside for validation"
            )
        return Fitted(how, chosen.epoch, chosen.test, f"{note}; {self.splits.note}")

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, beside what the fit was made from."""
        return {
            "recipe": self.recipe.model_dump_json(),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": [vars(epoch).copy() for epoch in self.history],
            "losses": list(self.losses),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for the state of a fit by another recipe."""
        if state["recipe"] != self.recipe.model_dump_json():
            raise ValueError(f"the state is of another recipe: {state['recipe']}, not {self.recipe.model_dump_json()}")
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.losses = list(state["losses"])

    def _step(self, epoch: int, step: int, batch: list[Example]) -> float:
        """One optimizer step on this rank's faces of the batch; its loss. Raises Diverged before the weights are
        touched."""
        num_slices = self.recipe.batch // self.recipe.slice
        mine = part(self.recipe.slice, self.team)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for place in range(num_slices):
            examples = batch[place * len(mine) : (place + 1) * len(mine)]
            images = torch.stack([example.image_CSS for example in examples]).to(self.device)
            target = torch.stack([example.target for example in examples]).to(self.device)
            # Drawn for the whole slice, on the CPU: the same whoever computes it, and on what.
            generator = torch.Generator().manual_seed(_seed(self.recipe.seed, "dropout", epoch, step, place))
            kept_SC = draw_dropout(self.recipe.slice, self.network.head.channels, generator)
            logits = self.network(images, kept_SC[mine.start : mine.stop].to(self.device))
            # A slice's loss is the mean over its faces.
            loss = self.task.loss(logits, target) * (len(mine) / self.recipe.slice) / num_slices
            loss.backward()
            total += loss.detach()
        # One loss for all: what is no number on one rank stops every rank.
        if not math.isfinite(value := float(self.team.sum(total))):
            raise Diverged(f"loss {value} in step {step} of epoch {epoch}; lower learning rates may help")
        sum_gradients(self.network, self.team)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        settle(self.network, take_statistics(self.network))
        self._move_average()
        return value

    @torch.no_grad()
    def _move_average(self) -> None:
        """Weights and running statistics alike: an average of weights has the average of their statistics."""
        for slow, fast in zip(_changing(self.average), _changing(self.network), strict=True):
            slow.lerp_(fast, 1 - self.recipe.average_decay)

    def _batches(self, epoch: int, done: int) -> Iterator[list[Example]]:
        """This rank's part of the epoch's batches after the first `done`, all of them full: the last one is filled up
        from the front, as the protocol does."""
        order = epoch_order(len(self.splits.train), self.splits.epoch_length, self.recipe.seed, epoch)
        steps = -(-len(order) // self.recipe.batch)

        def example(place: int) -> Example:
            generator = torch.Generator().manual_seed(_seed(self.recipe.seed, "face", epoch, place))
            return self.task.example(self.splits.train[order[place % len(order)]], generator)

        mine = part(self.recipe.slice, self.team)
        firsts = range(done * self.recipe.batch, steps * self.recipe.batch, self.recipe.batch)
        yield from _read_ahead(
            [
                partial(example, slice_first + place)
                for slice_first in range(first, first + self.recipe.batch, self.recipe.slice)
                for place in mine
            ]
            for first in firsts
        )

    def _best(self, split: str) -> Epoch:
        """The epoch with the best primary metric; the earliest of equals."""
        sign = -1 if self.task.higher_is_better else 1
        return min(self.history, key=lambda epoch: (sign * getattr(epoch, split)[self.task.primary], epoch.epoch))


def epoch_order(num_faces: int, length: int, seed: int, epoch: int) -> list[int]:
    """Numbers of the faces in the order of an epoch: all of them, repeated to `length`, and shuffled."""
    shuffled = torch.randperm(length, generator=torch.Generator().manual_seed(_seed(seed, "order", epoch)))
    return [place % num_faces for place in shuffled.tolist()]


def _optimizer(network: Network, recipe: Recipe) -> AdamW:
    parts = [(network.pyramid, recipe.pyramid_lr), (network.head, recipe.head_lr)]
    if not network.frozen:
        parts.append((network.encoder, recipe.encoder_lr))
    groups = [
        {"params": [weight for weight in part.parameters() if weight.requires_grad], "lr": rate, "first_lr": rate}
        for part, rate in parts
    ]
    return AdamW(groups, betas=recipe.betas, weight_decay=recipe.weight_decay)


def _changing(network: Network) -> list[torch.Tensor]:
    """Weights and statistics of the parts that are trained."""
    parts: list[nn.Module] = [network.pyramid, network.head, *([] if network.frozen else [network.encoder])]
    return [value for part in parts for value in (*part.parameters(), *part.buffers())]


def _read_ahead(batches: Iterable[Sequence[Callable[[], Example]]]) -> Iterator[list[Example]]:
    """Batches of examples, each read while the one before it is computed with."""
    with ThreadPoolExecutor(READERS) as pool:
        waiting: list[Future[Example]] | None = None
        for jobs in batches:
            started = [pool.submit(job) for job in jobs]
            if waiting is not None:
                yield [future.result() for future in waiting]
            waiting = started
        if waiting is not None:
            yield [future.result() for future in waiting]


def _seed(*key: object) -> int:
    """63 bits that differ for different keys."""
    text = " ".join(map(str, key))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
