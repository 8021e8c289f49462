"""Applies a trained module to files: its results for each photo, written at the size that the method gives them."""

import hashlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.decode import UnreadableImage
from datamodules.image_files import list_images, other_pictures
from datamodules.raster import Raster, raster
from doors.options import PredictOptions, method_options
from doors.writers import WRITERS
from lightning_modules.base import TranslationModule
from runs.load import load_run, module_class

log = logging.getLogger(__name__)

_NAME_BYTES = 255  # of a file's name on the usual file systems


def predict(door: PredictOptions, texts: Mapping[str, str]) -> int:
    """Writes the results of each photo into the output folder and returns the number of files that could not be read.

    `texts` are the method's options.
    """
    method = module_class(door.run)
    options = method_options(method, texts, PredictOptions)
    if method.takes_input != (door.input is not None):
        need = "takes input=FILE_OR_DIR" if method.takes_input else "takes no input=; leave it out"
        raise ValueError(f"{method.__name__} {need}")
    photos = _photos(door.input, Path(door.output))
    output = Output(Path(door.output), door.format, [path for path, _ in photos])
    for _, stem in photos:
        for name in output.names(stem, getattr(options, "num_samples", 1)):
            output.check(output.place("", name))
    module = load_run(door.run).module.to(pick_device(door.device))
    module.check_options(options, is_folder=door.input is not None and Path(door.input).is_dir())
    module.check_without_captions(options)
    options = module.prepare(options, lambda name: load_run(name).module)
    if not method.takes_input:
        output.write(module.results({"index": torch.tensor([0]), "name": ["sample"]}, options), "sample")
        return 0
    place = Path(str(door.input))
    num_left_out = len(other_pictures(place)) if place.is_dir() else 0
    return num_left_out + _predict_photos(module, photos, output, options, door.max_pixels)


def pick_device(name: str) -> torch.device:
    """The named device, or for auto the best one at hand."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name} is not available here; use device=cpu") from error


class Output:
    """A folder of results: STEM.png of the main result, NAME/STEM.png of the others, _0, _1 ... for several samples.

    It is made with the first file, and no file in it replaces one of the inputs.
    """

    def __init__(self, folder: Path, suffix: str, inputs: Sequence[Path] = ()) -> None:
        self.folder, self.suffix = folder, suffix
        self.num_files = 0
        self._taken = {path.resolve(): "the input" for path in inputs}

    def names(self, stem: str, num_samples: int) -> list[str]:
        """What the samples of one photo are called; where a name would be too long for a file it is cut."""
        endings = [""] if num_samples == 1 else [f"_{index}" for index in range(num_samples)]
        return [cut_name(stem, f"{ending}.{self.suffix}") + ending for ending in endings]

    def place(self, kind: str, name: str) -> Path:
        """The file of one result; `kind` is "" for the main one, and `name` may name a folder."""
        return self.folder / kind / f"{name}.{self.suffix}"

    def check(self, path: Path) -> None:
        """Raises a ValueError for a file that is an input or that another result has."""
        if path.resolve() in self._taken:
            what = self._taken[path.resolve()]
            name = path.relative_to(self.folder)
            raise ValueError(f"output={self.folder} would overwrite {what} {name}; give another folder")

    def write(self, results: Mapping[str, Any], stem: str) -> None:
        """Writes what `TranslationModule.results` gave for a batch of one."""
        for number, (kind, result) in enumerate(results.items()):
            samples = [result] if isinstance(result, (Tensor, Raster)) else list(result)
            for name, sample in zip(self.names(stem, len(samples)), samples, strict=True):
                path = self.place(kind if number else "", name)
                self.check(path)
                path.parent.mkdir(parents=True, exist_ok=True)
                WRITERS[self.suffix](sample if isinstance(sample, Raster) else raster(sample[0]), path)
                self._taken[path.resolve()] = "the result"
                self.num_files += 1


def _predict_photos(
    module: TranslationModule, photos: list[tuple[Path, str]], output: Output, options: Any, max_pixels: int
) -> int:
    num_failed, start = 0, time.perf_counter()
    for number, (path, stem) in enumerate(photos):
        try:
            photo = module.read_input(path, max_pixels)
            batch = {
                "image": photo[None],
                "index": torch.tensor([number]),
                "name": [str(Path(stem).with_name(path.name))],
            }
            results = module.results(batch, options)
        except UnreadableImage as error:
            log.warning("skipped %s", str(error).splitlines()[0])
            num_failed += 1
            continue
        output.write(results, stem)
    seconds = time.perf_counter() - start
    num_done = len(photos) - num_failed
    log.info("%d photos, %d results in %s (%.1f s)", num_done, output.num_files, output.folder, seconds)
    if num_failed:
        log.warning("%d of %d files could not be read", num_failed, len(photos))
    return num_failed


def cut_name(stem: str, ending: str) -> str:
    """A path's stem, with a hash in place of what makes its last part and the ending too long for a file's name."""
    room = _NAME_BYTES - len(os.fsencode(ending))
    name = os.fsencode(os.path.basename(stem))
    if len(name) <= room:
        return stem
    digest = f"-{hashlib.sha256(name).hexdigest()[:8]}"
    return os.path.join(os.path.dirname(stem), name[: room - len(digest)].decode(errors="ignore") + digest)


def _photos(given: str | None, output: Path) -> list[tuple[Path, str]]:
    """Each photo with its path inside the output folder, without suffix; beside a.png, a.jpg is a_jpg.

    Of an output folder within the input the files are left out: they are results of an earlier call.
    """
    if given is None:
        return []
    place = Path(given)
    if not place.exists():
        raise FileNotFoundError(f"input={given}: no such file or folder")
    if not place.is_dir():
        return [(place, place.stem)]
    taken: set[str] = set()
    named = []
    results = None if output.resolve() == place.resolve() else output.resolve()
    for path in list_images(place):
        if results is not None and path.resolve().is_relative_to(results):
            continue
        stem = str(path.relative_to(place).with_suffix(""))
        if stem in taken:
            stem = f"{stem}_{path.suffix[1:]}"
        taken.add(stem)
        named.append((path, stem))
    return named
