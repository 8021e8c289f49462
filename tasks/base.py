"""The base of every task: its protocol, its metrics and its baselines; and the metrics of one row of a table."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torchmetrics import Metric

from metrics.per_image import PerImageMetric, Summary
from metrics.weights import MissingWeightsError

Result = Tensor | Sequence[Tensor]
"""A result for a batch, or several samples of it in order."""
Results = Mapping[str, Result]
"""The results of one row by name; the first entry is the main one."""


@dataclass(frozen=True)
class Column:
    """A column of a table of figures: the metric's key, its title, and how it is read."""

    key: str
    title: str
    digits: int = 3
    better: Literal["lower", "higher"] | None = None
    meaning: str = ""


@dataclass(frozen=True, kw_only=True)
class Task:
    """How a kind of result is measured. A subclass is a frozen dataclass whose fields are the protocol.

    A field with a value outside its Literal raises ValueError.
    """

    name: ClassVar[str]
    columns: ClassVar[tuple[Column, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ("image",)
    """Entries of a sample that the task is about."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for entry in fields(self):
            allowed, value = get_args(hints[entry.name]), getattr(self, entry.name)
            if get_origin(hints[entry.name]) is Literal and value not in allowed:
                names = ", ".join(map(str, allowed))
                raise ValueError(f"{self.name} protocol got {entry.name}={value!r}, expected one of {names}")

    @classmethod
    def for_data(cls, datamodule: Any, **protocol: Any) -> "Task":
        """The task with the protocol's fields, and what the data module alone knows, such as the number of classes."""
        return cls(**protocol)

    @classmethod
    def check_sample(cls, sample: Mapping[str, Any]) -> None:
        """Raises a ValueError for a sample of data that the task cannot use."""
        missing = [key for key in cls.needs if key not in sample]
        if missing:
            raise ValueError(
                f"{cls.name} needs data with {' and '.join(missing)}, and these have {', '.join(sample)}; choose another datamodule"
            )

    def described(self) -> dict[str, Any]:
        """The task's name and every field of the protocol, as written beside each figure."""
        return {"task": self.name, **asdict(self)}

    def as_measured(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The config of a data module such that it delivers what the protocol measures; unchanged by default."""
        return dict(data)

    def posed(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with what the protocol makes of the data for methods to start from; unchanged by default."""
        return dict(batch)

    def metrics(self) -> dict[str, Callable[[], Metric]]:
        """Builders of the metrics by key; one that raises MissingWeightsError is left out and explained."""
        raise NotImplementedError(f"{type(self).__name__} must define metrics() -> builders by key")

    def arguments(self, results: Results, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments for every metric's update; each metric takes those that its update names."""
        raise NotImplementedError(f"{type(self).__name__} must define arguments(results, batch)")

    def fit(self, train_dataset: Any) -> Any | None:
        """What baselines learn from the train split; None by default."""
        return None

    def baselines(self, batch: Mapping[str, Any], fitted: Any | None = None) -> dict[str, Results]:
        """Results that need no model, by row name; none by default."""
        return {}

    def picture(self, results: Results, batch: Mapping[str, Any]) -> Tensor:
        """The main result as pictures (B, 3, H, W) in [0, 1]; of several samples the first."""
        return as_picture(main_result(results))

    def truth(self, batch: Mapping[str, Any]) -> Tensor | None:
        """The true pictures (B, 3, H, W) in [0, 1], or None where there is no one truth."""
        return None

    def column(self, key: str) -> Column:
        """The column of a metric; of a key that `columns` lacks, such as one named after a backbone, a plain one."""
        lower = key.startswith(("frechet_", "kernel_"))
        plain = Column(key, key.replace("_", " "), better="lower" if lower else None)
        return next((column for column in self.columns if column.key == key), plain)


class Scores:
    """The metrics of one row, over all batches.

    A metric whose weights are missing, or whose arguments the results of any batch lack, is left out; `skipped` has one
    sentence with the reason and the remedy by its key. Metrics gather over processes when torch.distributed runs.

    Args:
        task: see `Task`.
        device: where features and states live.

    Example:
        >>> from tasks.colorization import Colorization
        >>> scores = Scores(Colorization())
        >>> scores.update({"image": torch.rand(2, 3, 32, 32)}, {"image": torch.rand(2, 3, 32, 32)})
        >>> scores.compute()["psnr"].count
        2
    """

    def __init__(self, task: Task, device: torch.device | str = "cpu") -> None:
        self.task = task
        self.skipped: dict[str, str] = {}
        self._device = device
        self._metrics: dict[str, Metric] = {}
        for key, build in task.metrics().items():
            try:
                self._metrics[key] = build().to(device)
            except MissingWeightsError as error:
                self.skipped[key] = str(error)

    @torch.no_grad()
    def update(self, results: Results, batch: Mapping[str, Any]) -> None:
        """Adds the results of a batch; ValueError if results and truth do not fit together."""
        parts = (dict(results), dict(batch))
        parts = apply_to_collection(parts, Tensor, lambda tensor: tensor.to(self._device))
        given = self.task.arguments(*parts)
        for key, metric in list(self._metrics.items()):
            wanted = inspect.signature(metric.update).parameters
            if missing := [name for name in wanted if name not in given]:
                # Also of later batches: else the figure would be that of a part of the images.
                del self._metrics[key]
                self.skipped[key] = f"results or data hold no {' and no '.join(missing)}"
            else:
                metric.update(**{name: given[name] for name in wanted})

    def compute(self) -> dict[str, Summary]:
        """Returns every metric over all batches; a set too small for a metric moves it to `skipped`."""
        summaries = {}
        for key, metric in self._metrics.items():
            try:
                summaries[key] = metric.compute()
                self.skipped.pop(key, None)
            except ValueError as error:
                self.skipped[key] = str(error)
        return summaries

    def per_image(self) -> dict[str, Tensor]:
        """Returns the values of each image, (N,), of every metric that has them, in the order seen."""
        metrics = self._metrics.items()
        return {key: metric.all_values() for key, metric in metrics if isinstance(metric, PerImageMetric)}


def main_result(results: Results) -> Tensor:
    """The main result, (B, ...): the first entry, and of several samples the first."""
    return first_sample(next(iter(results.values())))


def first_sample(result: Result) -> Tensor:
    """The result itself, or the first of several samples."""
    return result if isinstance(result, Tensor) else result[0]


def as_picture(image: Tensor) -> Tensor:
    """A picture (B, 3 or 1, H, W), float in [0, 1] or uint8, as float32 (B, 3, H, W) in [0, 1]; ValueError for others."""
    if image.ndim != 4 or image.shape[1] not in (1, 3):
        raise ValueError(f"a picture got shape {tuple(image.shape)}, expected (B, 3, H, W) or (B, 1, H, W)")
    image = image.float() / 255.0 if image.dtype == torch.uint8 else image.float()
    return image.expand(-1, 3, -1, -1)


def batch_entry(batch: Mapping[str, Any], key: str) -> Tensor:
    """An entry of a batch as one tensor, (B, ...); ValueError if it lacks or its parts have different sizes."""
    if key not in batch:
        raise ValueError(
            f"the batch has no {key!r}, only {', '.join(batch)}, so this task has nothing to measure against; "
            "choose a datamodule that gives it"
        )
    if isinstance(batch[key], Tensor):
        return batch[key]
    if len({tuple(entry.shape) for entry in batch[key]}) > 1:
        raise ValueError(
            f"batch[{key!r}] holds entries of different sizes, which are measured one at a time: "
            "set datamodule.batch_size=1"
        )
    return torch.stack(list(batch[key]))
