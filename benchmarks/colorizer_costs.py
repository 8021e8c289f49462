"""What a colorizer costs: network evaluations, seconds, parameters, and the photos that its training took."""

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from benchmarks.colorizer_photos import Draw, Photos
from lightning_modules.base import TranslationModule
from lightning_modules.colorizer import Colorizer
from runs.load import Run


@contextmanager
def evaluated_rows(network: nn.Module) -> Iterator[list[int]]:
    """A list that grows by the batch size of every call of the network."""
    rows: list[int] = []

    def note(_: nn.Module, given: tuple[Tensor, ...], __: Any) -> None:
        rows.append(len(given[0]))

    handle = network.register_forward_hook(note)
    try:
        yield rows
    finally:
        handle.remove()


def evaluations_per_image(module: Colorizer, draw: Draw, photos: Photos) -> float:
    """U-Net evaluations for one result, those of guidance's second branch counted too."""
    with evaluated_rows(module.parts.unet) as rows:
        draw(photos, 0)
    return sum(rows) / len(photos)


def seconds_per_image(draws: Mapping[str, Draw], photos: Photos, num_rounds: int) -> dict[str, float]:
    """Median time of one photo at a time; the draws take turns, so that a slow while of the machine slows all."""
    taken: dict[str, list[float]] = {name: [] for name in draws}
    one = photos.part(0, 1)
    for number in range(-1, num_rounds):  # the first round warms up and puts the caption into the text caches
        for name, draw in draws.items():
            start = time.perf_counter()
            draw(one, 0).cpu()  # the copy waits for the device
            if number >= 0:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def parameters(module: TranslationModule) -> dict[str, int]:
    """Numbers of parameters: of the trained networks, and of all that takes part."""
    trained = {p for network in module.trained_networks() for p in network.parameters()}
    return {
        "trained_parameters": sum(p.numel() for p in trained),
        "parameters": sum(p.numel() for p in module.parameters()),
    }


def training_images(run: Run) -> int | None:
    """Photos that the loaded weights were trained on, repeats counted; None where no checkpoint tells."""
    trainer = run.config.get("trainer", {})
    num_processes = _num_processes(trainer)
    if run.num_steps is None or num_processes is None:
        return None
    per_step = run.config["datamodule"]["batch_size"] * trainer.get("accumulate_grad_batches", 1)
    return run.num_steps * int(per_step) * num_processes


def _num_processes(trainer: Mapping[str, Any]) -> int | None:
    devices = trainer.get("devices", 1)
    count = len(devices) if isinstance(devices, list) else devices
    return count * trainer.get("num_nodes", 1) if isinstance(count, int) and count > 0 else None
