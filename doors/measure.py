"""Draws the same images with every method and measures them as their task says.

Shapes: B batch, H/W pixels.
"""

import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from doors.costs import Costs, costs
from lightning_modules.base import TranslationModule
from metrics.per_image import Summary, summarize
from tasks.base import Scores, Task

_NUM_SHOWN = 12


@dataclass(frozen=True)
class Plan:
    """A method as the user names it: its runs, and the texts of its options."""

    name: str  # of its first row; "" leaves the rows their own names
    runs: list[str]  # trainings that differ in their seed
    texts: dict[str, str]
    curve: str = ""  # the line of a curve that it is a point of
    value: float = 0.0  # of the option that the curve varies
    further_rows: bool = True  # draw also what stands beside the method's own result


@dataclass(frozen=True, eq=False)
class Method:
    """A plan with its trained modules and their options."""

    plan: Plan
    modules: Sequence[TranslationModule]  # one for each training seed
    options: Any

    def rows(self, batch: dict[str, Any]) -> Iterator[tuple["Row", int, Any]]:
        """The results of each training with its number and a row named for them."""
        for number, module in enumerate(self.modules):
            found = module.rows(batch, self.options)
            for place, (name, results) in enumerate(islice(found, None if self.plan.further_rows else 1)):
                joined = f"{self.plan.name}, {name}" if self.plan.name and place else self.plan.name or name
                yield Row(joined, self.plan, is_first=place == 0), number, results


@dataclass(eq=False)
class Row:
    """The figures of one row of the table."""

    name: str
    plan: Plan | None = None  # None of a baseline
    is_first: bool = False  # the method's own result
    scores: list[Scores] = field(default_factory=list)  # one for each training seed
    pictures: list[Tensor] = field(default_factory=list)  # uint8 (3, H, W) of the images that are shown

    def figures(self) -> dict[str, dict[str, Any]]:
        """By metric: mean, std over images, count, interval; of several trainings also each mean and their spread.

        The figures of several trainings are those of each image's mean over the trainings, of the metrics that none
        of them lacks.
        """
        computed = [scores.compute() for scores in self.scores]
        if len(computed) == 1:
            return {key: summary._asdict() for key, summary in computed[0].items()}
        found = {}
        for key in (key for key in computed[0] if all(key in other for other in computed)):
            means = [summaries[key].mean for summaries in computed]
            values = self.per_image(key)
            joint = Summary(statistics.fmean(means), None, computed[0][key].count)
            if values is not None:
                joint = summarize(values[~values.isnan()])
            found[key] = {**joint._asdict(), "runs": means, "spread": statistics.stdev(means)}
        return found

    def per_image(self, key: str) -> Tensor | None:
        """One value for each image (N,), the mean over the trainings; None of a metric of whole sets."""
        found = [scores.per_image().get(key) for scores in self.scores]
        values = [v.double().cpu() for v in found if v is not None]
        return torch.stack(values).mean(0) if len(values) == len(found) > 0 else None

    def add(self, number: int, task: Task, results: Any, batch: dict[str, Any], kept: Sequence[int]) -> None:
        """Measures the results of one training for a batch; keeps the pictures at the places `kept` of the first."""
        if len(self.scores) <= number:
            self.scores.append(Scores(task, batch["index"].device))
        self.scores[number].update(results, batch)
        if number == 0 and kept:
            picture = task.picture(results, batch)
            self.pictures += [_eight_bit(picture[i]) for i in kept]


@dataclass(frozen=True, eq=False)
class Measured:
    """The rows of methods and baselines, and what is needed to show them."""

    rows: list[Row]
    truth: list[Tensor]  # pictures uint8 (3, H, W); none where there is no one truth
    names: list[str]  # of the images that are shown
    positions: list[int]  # of these in the split
    num_images: int
    costs: dict[str, Costs]  # by the name of a method's first row


def measured(
    task: Task,
    methods: Sequence[Method],
    datamodule: LightningDataModule,
    split: str,
    limit: int | None,
    fitted: Any,
) -> Measured:
    """Draws the first images of a split, all without a limit, with every method, and measures methods and baselines.

    The data module is set up for the split, val or test; `fitted` is what the baselines learned.
    """
    num_images = min(len(getattr(datamodule, f"{split}_dataset")), limit or sys.maxsize)
    num_shown = min(_NUM_SHOWN, num_images)
    shown = {k * (num_images - 1) // max(1, num_shown - 1) for k in range(num_shown)}
    rows: dict[str, Row] = {}
    truths: list[Tensor] = []
    names: list[str] = []
    device, start = methods[0].modules[0].device, 0
    for batch in map(task.posed, batches(datamodule, split, num_images, device)):
        kept = [i for i in range(len(batch["index"])) if start + i in shown]
        for row, number, results in (drawn for method in methods for drawn in method.rows(batch)):
            rows.setdefault(row.name, row).add(number, task, results, batch, kept)
        for name, results in task.baselines(batch, fitted).items():
            rows.setdefault(name, Row(name)).add(0, task, results, batch, kept)
        truth = task.truth(batch) if kept else None
        truths += [] if truth is None else [_eight_bit(truth[i]) for i in kept]
        names += [str(batch["name"][i]) for i in kept]
        start += len(batch["index"])
    first = task.posed(next(iter(batches(datamodule, split, 1, device))))
    spent = costs([(method.modules[0], method.options) for method in methods], first)
    firsts = [row.name for row in rows.values() if row.is_first]
    by_row = dict(zip(firsts, spent, strict=True))
    return Measured(list(rows.values()), truths, names, sorted(shown), num_images, by_row)


def _eight_bit(picture: Tensor) -> Tensor:
    return (picture.float().clamp(0, 1) * 255).round().byte().cpu()


def batches(
    datamodule: LightningDataModule, split: str, num_images: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """The first images of a split in batches on a device."""
    loader = datamodule.val_dataloader() if split == "val" else datamodule.test_dataloader()
    for batch in loader:
        if num_images <= 0:
            return
        size = len(batch["index"])
        if size > num_images:
            batch = {key: value[:num_images] for key, value in batch.items()}
        yield apply_to_collection(batch, Tensor, lambda tensor: tensor.to(device))
        num_images -= size


def fitted_baselines(task: Task, datamodule: LightningDataModule, split: str) -> tuple[Any, str]:
    """What the task's baselines learn, and from which split: train, or the measured one where there is no train.

    None and "" where they learn nothing.
    """
    if type(task).fit is Task.fit:
        return None, ""
    try:
        datamodule.setup("fit")
        return task.fit(datamodule.train_dataset), "train"
    except (ValueError, OSError, NotImplementedError):
        return task.fit(getattr(datamodule, f"{split}_dataset")), split


def differences(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """The paired differences over images of each method's first row and the first method's, by metric."""
    first, *others = [row for row in rows if row.is_first]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in others:
        pairs = {key: (row.per_image(key), first.per_image(key)) for key in row.scores[0].per_image()}
        found[f"{row.name} - {first.name}"] = {
            key: summarize((a - b)[~(a - b).isnan()])._asdict()
            for key, (a, b) in pairs.items()
            if a is not None and b is not None and len(a) == len(b)
        }
    return found
