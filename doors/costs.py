"""What a method costs: parameters, network evaluations, seconds an image, and memory."""

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from datamodules.raster import Raster
from lightning_modules.base import TranslationModule

_NUM_ROUNDS = 3
_MIB = 1 << 20

Costs = dict[str, float | None]
TITLES = {
    "trained_parameters": "trained parameters, million",
    "parameters": "parameters, million",
    "evaluations": "network evaluations",
    "seconds": "s an image",
    "peak_mib": "peak memory, MiB",
}


def costs(methods: Sequence[tuple[TranslationModule, Any]], batch: Mapping[str, Any]) -> list[Costs]:
    """The costs of each module with its options on the first image of a batch.

    Seconds are the median of three turns, which the methods take one after the other, so that a slow while of the
    machine slows all of them. Evaluations are the calls of the network that is called most often, guidance's second
    branch and all samples of the image counted too. Memory is the process's, or the device's on CUDA; None where it cannot be told.
    """
    one = {key: value[:1] for key, value in batch.items() if isinstance(value, (Tensor, list))}
    found: list[Costs] = []
    for module, options in methods:  # once to count, and to warm up
        with _counted(module) as counts, _peak(module.device) as peak:
            _complete(module.results(one, options))
        every = list(module.parameters())
        found.append(
            {
                "trained_parameters": sum(p.numel() for p in every if p.requires_grad) / 1e6,
                "parameters": sum(p.numel() for p in every) / 1e6,
                "evaluations": max(counts.values(), default=0) or None,
                "peak_mib": peak.get("mib"),
            }
        )
    taken: list[list[float]] = [[] for _ in methods]
    for _ in range(_NUM_ROUNDS):
        for seconds, (module, options) in zip(taken, methods, strict=True):
            start = time.perf_counter()
            _complete(module.results(one, options))
            seconds.append(time.perf_counter() - start)
    return [entry | {"seconds": statistics.median(s)} for entry, s in zip(found, taken, strict=True)]


def _complete(results: Mapping[str, Any]) -> None:
    """Waits until results are there: copies wait for the device, rasters are made while they are read."""
    for result in results.values():
        for sample in [result] if isinstance(result, (Tensor, Raster)) else result:
            if isinstance(sample, Raster):
                for _ in sample.checked():
                    pass
            else:
                sample.cpu()


@contextmanager
def _counted(module: TranslationModule) -> Iterator[Counter[int]]:
    """The number of samples that each network of diffusers has been called with."""
    counts: Counter[int] = Counter()

    def note(name: int, _: nn.Module, given: tuple[Any, ...]) -> None:
        counts[name] += len(given[0]) if given and isinstance(given[0], Tensor) else 1

    with ExitStack() as hooks:
        for name, part in enumerate(module.modules()):
            if isinstance(part, ModelMixin):
                hooks.enter_context(part.register_forward_pre_hook(partial(note, name)))
        yield counts


@contextmanager
def _peak(device: torch.device) -> Iterator[dict[str, float]]:
    """The most memory that was in use inside, as `mib`; empty where the system does not say."""
    peak: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak["mib"] = torch.cuda.max_memory_allocated(device) / _MIB
        return
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        clear.write_text("5")  # Linux resets its high-water mark, VmHWM
    except OSError:
        yield peak
        return
    yield peak
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    peak["mib"] = int(line.split()[1]) / 1024
