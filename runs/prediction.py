"""Applies a trained module to files: one result, or several, for each photo, at the photo's own size."""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.decode import UnreadableImage, decode_image
from datamodules.image_files import list_images
from lightning_modules.base import TranslationModule
from lightning_modules.latent_diffusion import LatentDiffusion
from lightning_modules.requests import PredictRequest
from runs.drawing import DrawOptions, check_drawing, check_effect, draw_settings
from runs.edits import EditWords
from runs.load import load_run
from runs.options import option, size

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PredictOptions(DrawOptions):
    """Options of predict.py."""

    run: str = option("run folder, checkpoint file, or a name in pretrained/")
    output: str = option("folder for the results")
    input: str | None = option(
        "a photo or a folder of photos (not for latent_diffusion, which takes a prompt)", None
    )
    prompt: str = option("text condition", "")
    hints: str | None = option(
        "known colours: PNG of the photo's size, opaque where known, or points as in 'x,y,#rrggbb; x,y,radius,#rrggbb'",
        None,
    )
    mask: str | None = option(
        "grey picture of the photo's size: white = colour here, black = keep the photo as it is", None
    )
    start: float = option(
        "of diffusing_colors: 1 from grey; less = the photo has kept 1 - start of its colour, go on from there",
        1.0,
    )
    num_samples: int = option("results for each photo", 1)
    short_px: int | None = option(
        "working size: short side as the network sees it; the run's own if not given", None
    )
    size: str | None = option("HxW of the result, for methods that choose it", None)
    max_pixels: int = option("larger photos are refused before decoding", 64_000_000)


def predict(options: PredictOptions) -> int:
    """Writes PNG files into the output folder and returns the number of files that could not be read.

    Raises:
        FileNotFoundError, ValueError: no such run or input, or options that make no sense.
    """
    check_drawing(options)
    if options.num_samples < 1:
        raise ValueError(f"num_samples={options.num_samples} asks for no result; give at least 1")
    if options.max_pixels < 1:
        raise ValueError(f"max_pixels={options.max_pixels} refuses every photo; give at least 1")
    if options.short_px is not None and options.short_px < 1:
        raise ValueError(f"short_px={options.short_px} is no working size; give pixels, or leave it out")
    size(options.size)
    photos = _photos(options.input)
    words = EditWords(options.hints, options.mask, options.start)
    words.check(options.input)
    run = load_run(options.run)
    module = run.module.to(pick_device(options.device))
    generates = isinstance(module, LatentDiffusion)
    if generates == (options.input is not None):
        need = "prompt= and no input=" if generates else "input=FILE_OR_DIR"
        raise ValueError(f"{type(module).__name__} takes {need}")
    given = ("prompt", "negative_prompt", "steps", "guidance", "size", "short_px")
    check_effect(module, {name: getattr(options, name) for name in given})
    draw = draw_settings(options, module.device)
    words.check_module(module, draw, options.num_samples)
    request = PredictRequest(
        number=0,
        prompt=options.prompt,
        num_samples=options.num_samples,
        short_px=options.short_px or int(run.config["datamodule"]["size_px"]),
        size_px=size(options.size),
        draw=draw,
    )
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    if generates:
        _save(module.generate_prompt(request), folder / "sample")
        return 0
    return _predict_photos(module, photos, folder, request, words, options)


def pick_device(name: str) -> torch.device:
    """The named device, or for auto the best one at hand.

    Raises:
        ValueError: a device that this machine lacks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name} is not available here; use device=cpu") from error


def _predict_photos(
    module: TranslationModule,
    photos: list[tuple[Path, str]],
    folder: Path,
    request: PredictRequest,
    words: EditWords,
    options: PredictOptions,
) -> int:
    taken = {path.resolve() for path, _ in photos}
    clash = next((name for _, name in photos if (folder / name).resolve() in taken), None)
    if clash is not None:
        raise ValueError(f"output={folder} would overwrite the input {clash}; give another folder")
    num_failed, start = 0, time.perf_counter()
    for number, (path, name) in enumerate(photos):
        try:
            photo = decode_image(path, max_pixels=options.max_pixels)
        except (UnreadableImage, OSError) as error:
            log.warning("skipped %s", str(error).splitlines()[0])
            num_failed += 1
            continue
        edits = words.read(photo, max_pixels=options.max_pixels)
        results = module.predict_photo(photo, replace(request, number=number, name=path.name, edits=edits))
        _save(results, (folder / name).with_suffix(""))
    num_done = len(photos) - num_failed
    seconds = time.perf_counter() - start
    log.info(
        "%d photos, %d results in %s (%.1f s)", num_done, num_done * request.num_samples, folder, seconds
    )
    if num_failed:
        log.warning("%d of %d files could not be read", num_failed, len(photos))
    return num_failed


def _photos(given: str | None) -> list[tuple[Path, str]]:
    """Each photo with the name of its result inside the output folder."""
    if given is None:
        return []
    place = Path(given)
    if place.is_dir():
        found = list_images(place)
        return _unique([(path, path.relative_to(place)) for path in found])
    if not place.exists():
        raise FileNotFoundError(f"input={given}: no such file or folder")
    return [(place, place.name)]


def _unique(found: list[tuple[Path, Path]]) -> list[tuple[Path, str]]:
    """Names without suffix must stay apart: a.png and a.jpg give a and a_jpg."""
    taken: set[str] = set()
    named = []
    for path, relative in found:
        stem = str(relative.with_suffix(""))
        if stem in taken:
            stem = f"{stem}_{relative.suffix[1:]}"
        taken.add(stem)
        named.append((path, f"{stem}.png"))
    return named


def _save(results: list[Tensor], stem: Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    for index, result in enumerate(results):
        name = stem.name if len(results) == 1 else f"{stem.name}_{index}"
        picture = Image.fromarray(np.ascontiguousarray(result.permute(1, 2, 0).numpy()))
        picture.save(stem.parent / f"{name}.png", compress_level=4)
