"""Measures a trained module on a split of a data set, beside the baselines that its method names."""

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.utils import make_grid, save_image

from color.gamut import clip_chroma
from color.lab import lightness, rgb_to_lab
from lightning_modules.base import TranslationModule
from lightning_modules.requests import DrawSettings
from metrics.colorization import ColorizationMetrics, ColorizationProtocol
from metrics.per_image import Summary
from runs.build import build
from runs.config import stamp
from runs.drawing import DrawOptions, check_drawing, check_effect, draw_settings
from runs.edits import EditWords
from runs.folder import write_text
from runs.load import Run, load_run
from runs.options import option
from runs.prediction import pick_device
from runs.reading import with_datamodule
from runs.vividness import chosen_by

log = logging.getLogger(__name__)

MEAN_COLOUR = "mean colour"
_MEAN_COLOUR_PHOTOS = 1000


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(DrawOptions):
    """Options of evaluate.py."""

    run: str = option("run folder, checkpoint file, or a name in pretrained/")
    split: str = option("val or test", "test")
    output: str | None = option("folder for metrics.json; outputs/evaluate/NAME/DATE_TIME if not given", None)
    protocol: str = option(
        "own | val5k | val50k: picture size and crop; own leaves pictures as the run sees them", "own"
    )
    colorfulness: str = option(
        "absolute (as in recent papers' code) | hasler (the original definition)", "absolute"
    )
    colorfulness_difference: str = option("of_means | per_image", "of_means")
    fid_backbone: str = option("inception | squeezenet (then named after it, not FID)", "inception")
    weights_dir: str | None = option("folder with SqueezeNet weights", None)
    limit: int | None = option("first so many images of the split; all if not given", None)


def evaluate(options: EvaluateOptions, overrides: list[str]) -> Path:
    """Writes metrics.json and a sheet of pictures, prints a table, and returns the folder.

    Raises:
        FileNotFoundError, ValueError: no such run, data or option.
    """
    if options.split not in ("val", "test"):
        raise ValueError(f"split={options.split} is not val or test")
    if options.limit is not None and options.limit < 1:
        raise ValueError(
            f"limit={options.limit} leaves no image to measure; give at least 1, or leave it out"
        )
    protocol = _protocol(options)
    check_drawing(options)
    run = load_run(options.run)
    config = _as_measured(with_datamodule(run.config, overrides), protocol)
    module = run.module.to(pick_device(options.device))
    datamodule: LightningDataModule = build(config["datamodule"], "datamodule")
    datamodule.setup("validate" if options.split == "val" else "test")
    ab, chroma_source = mean_chroma(datamodule, options.split)
    settings = draw_settings(options, module.device, short_px=int(run.config["datamodule"]["size_px"]))
    check_effect(module, {name: getattr(options, name) for name in ("negative_prompt", "steps", "guidance")})
    EditWords().check_module(module, settings, 1)

    folder = Path(options.output or f"outputs/evaluate/{_name(run)}/{stamp()}")
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, ColorizationMetrics] = {}
    for number, batch in enumerate(_batches(datamodule, options)):
        images = _evaluated(module, batch, settings, ab)
        for name, image in images.items():
            if name not in rows:
                rows[name] = ColorizationMetrics(protocol, module.device)
            rows[name].update(image, batch["image"])
        if number == 0:
            _save_sheet({**images, "truth": batch["image"]}, folder / "samples.png")

    results = {name: metrics.compute() for name, metrics in rows.items()}
    skipped = next(iter(rows.values())).skipped
    report = {
        "run": options.run,
        "split": options.split,
        "num_images": next(iter(results.values()))["psnr"].count,
        "protocol": asdict(protocol),
        "draw": asdict(replace(settings, ranker=None)) | chosen_by(options.chroma, options.ranker),
        "mean_colour_from": chroma_source,
        "results": {row: {k: v._asdict() for k, v in values.items()} for row, values in results.items()},
        "skipped": skipped,
    }
    write_text(folder / "metrics.json", json.dumps(report, indent=2) + "\n")
    _print(results, skipped, report)
    log.info("written to %s", folder)
    return folder


def _protocol(options: EvaluateOptions) -> ColorizationProtocol:
    sizes: dict[str, dict[str, Any]] = {
        "own": {"size_px": None},
        "val5k": {"size_px": 256, "crop": "center"},
        "val50k": {"size_px": 256, "crop": "resize"},
    }
    if options.protocol not in sizes:
        raise ValueError(f"protocol={options.protocol} is not one of {', '.join(sizes)}")
    return ColorizationProtocol(
        name=options.protocol,
        colorfulness_variant=options.colorfulness,  # type: ignore[arg-type]  # checked by the protocol
        colorfulness_difference=options.colorfulness_difference,  # type: ignore[arg-type]
        fid_backbone=options.fid_backbone,  # type: ignore[arg-type]
        weights_dir=options.weights_dir,
        **sizes[options.protocol],
    )


def _as_measured(config: dict[str, Any], protocol: ColorizationProtocol) -> dict[str, Any]:
    """The config whose data module delivers pictures of the protocol's size and crop."""
    if protocol.size_px is None:
        return config
    data = {**config["datamodule"], "size_px": protocol.size_px}
    if "eval_crop" in data:
        data["eval_crop"] = protocol.crop
    elif protocol.crop != "center":
        raise ValueError(f"protocol={protocol.name} squeezes whole photos, which only datamodule=photos can")
    return {**config, "datamodule": data}


def _batches(datamodule: LightningDataModule, options: EvaluateOptions) -> Any:
    loader = datamodule.val_dataloader() if options.split == "val" else datamodule.test_dataloader()
    left = options.limit if options.limit is not None else len(loader.dataset)
    for batch in loader:
        if left <= 0:
            return
        yield {key: value[:left] for key, value in batch.items()}
        left -= len(batch["image"])


def _evaluated(
    module: TranslationModule, batch: dict[str, Any], settings: DrawSettings, ab: Tensor
) -> dict[str, Tensor]:
    on_device = {k: v.to(module.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    images = module.evaluated_images(on_device, settings)
    if "grey" in images:  # a colorizer: the second baseline is one colour for all
        images[MEAN_COLOUR] = one_chroma(batch["image"], ab)
    return images


def one_chroma(image: Tensor, chroma: Tensor) -> Tensor:
    """The images (B, 3, H, W) with their own lightness and one ab (2,) everywhere."""
    given = lightness(image)
    lab = torch.cat([given * 100, chroma.view(1, 2, 1, 1).expand(len(given), -1, *given.shape[-2:])], dim=1)
    return clip_chroma(lab)


def mean_chroma(datamodule: LightningDataModule, split: str) -> tuple[Tensor, str]:
    """Mean ab (2,) of the train split, or of the evaluated one where there is no train split, and which it was."""
    try:
        datamodule.setup("fit")
        dataset, source = datamodule.train_dataset, "train"
    except (ValueError, OSError):
        dataset, source = getattr(datamodule, f"{split}_dataset"), split
    step = max(1, len(dataset) // _MEAN_COLOUR_PHOTOS)
    means = [rgb_to_lab(dataset[i]["image"][None])[0, 1:].mean((1, 2)) for i in range(0, len(dataset), step)]
    return torch.stack(means).mean(0), source


def _save_sheet(columns: dict[str, Tensor], path: Path, num_rows: int = 12) -> None:
    """One row an image, one column a method, in the order of the table."""
    shown = [image[:num_rows].cpu() for image in columns.values()]
    cells = torch.stack(shown, dim=1).flatten(0, 1)
    save_image(make_grid(cells, nrow=len(shown), padding=2, pad_value=1.0), path)


def _name(run: Run) -> str:
    return str(run.config["experiment_name"])


def _print(results: dict[str, dict[str, Summary]], skipped: dict[str, str], report: dict[str, Any]) -> None:
    names = list(next(iter(results.values())))
    table = Table(
        title=f"{report['run']}, {report['split']}, {report['num_images']} images, protocol {report['protocol']['name']}"
    )
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for row, values in results.items():
        table.add_row(row, *[_figure(values.get(name)) for name in names])
    console = Console(width=max(110, 16 * (len(names) + 2)))
    console.print(table)
    for name, reason in skipped.items():
        console.print(f"skipped {name}: {reason}", markup=False)


def _figure(value: Summary | None) -> str:
    if value is None:
        return "-"
    return f"{value.mean:.3f}" if value.std is None else f"{value.mean:.3f} ± {value.std:.3f}"
