"""ControlNet for any condition (Zhang et al. 2023): given with the target as a pair, or made from the photo itself by name.

Shapes: B batch, C condition channels, H/W pixels.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from color.conditions import MASKED, NAMES, NUM_BOX, MadeCondition
from lightning_modules.base import Batch, Results, TranslationModule
from lightning_modules.color_edits import read_region
from lightning_modules.controlled import Control, Controlled, Further
from lightning_modules.options import option, path
from lightning_modules.translation import Translator
from lightning_modules.translation_options import TranslationOptions
from tasks.base import main_result

_RGB = 3


def runs_with_scales(text: str) -> dict[str, float | None]:
    """Runs with the scale of their residuals, None = the run's own, of a text `RUN; RUN@0.5`.

    Raises:
        ValueError: a scale that is no number, or a run twice.
    """
    found: dict[str, float | None] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        run, _, scale = part.partition("@")
        try:
            number = float(scale) if scale else None
        except ValueError:
            raise ValueError(f"also={text} has '{part}'; write also='RUN; RUN@SCALE'") from None
        if path(run.strip()) in found:
            raise ValueError(f"also={text} names {run} twice; give it one scale")
        found[path(run.strip())] = number
    return found


@dataclass(frozen=True, kw_only=True)
class ControlOptions(TranslationOptions):
    """How conditions act."""

    control_scale: float | None = option(
        "multiplies what the ControlNet adds; the run's own if not given", None
    )
    control_start: float = option("share of the steps before the condition acts", 0.0)
    control_end: float = option("share of the steps after which it does no more", 1.0)
    guess: bool = option(
        "true = guess mode: act less at fine levels; for empty prompts, with guidance", False
    )
    ready: bool = option("true = the input is the condition itself, no photo that it is made from", False)
    mask: str | None = option(
        "of a model of masked photos: grey picture of the photo's size, white = fill here", None, parse=path
    )
    also: Mapping[str, float | None] | None = option(
        "further ControlNets at once: 'RUN; RUN@SCALE'", None, parse=runs_with_scales
    )
    # What `ControlNet.prepare` loads for also=.
    loaded: tuple["ControlNet", ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.control_start < self.control_end <= 1:
            raise ValueError(
                f"control_start={self.control_start:g} and control_end={self.control_end:g} are no part of the steps; give "
                "shares from 0 to 1, the start below the end"
            )


class ControlNet(Translator, Controlled):
    """Steers a frozen base by conditions, which are the channels of one ControlNet, three for each.

    A condition is an entry of the batch, such as `source` of pairs, else one that is made from the photo: canny, soft_edges,
    scribble, grey, blur, low, masked, each with an amount behind a colon if wanted (`low:8`).

    Args:
        conds: the names of the conditions.
        settings: as Controlled.
    """

    Options = ControlOptions

    def __init__(self, *, conds: Sequence[str], **settings: Any) -> None:
        if not conds or len(set(conds)) < len(conds):
            raise ValueError(f"module.conds is {list(conds)}; expected one or more different conditions")
        super().__init__(conds=conds, num_cond_channels=_RGB * len(conds), **settings)
        self.makers = {name: made for name in conds if (made := MadeCondition.parse(name)) is not None}
        if len(conds) > 1:
            self.pipeline = None  # diffusers' pipeline has a ControlNet for each picture

    def inputs(self) -> tuple[str, ...]:
        given = tuple(name for name in self.conds if name not in self.makers)
        return (("image",) if self.makers else ()) + given

    def given(self, options: ControlOptions) -> tuple[str, ...]:
        further = (name for other in options.loaded for name in other.inputs())
        return tuple(dict.fromkeys((*self.inputs(), *further)))

    # ---- the condition

    def condition(self, batch: Batch) -> dict[str, Any]:
        return super().condition(batch) | {"cond": self.cond(batch)}

    def cond(self, batch: Batch) -> Tensor:
        """The conditions (B, C, H, W) of a batch, one behind the other."""
        if both := [name for name in self.makers if name in batch]:
            raise ValueError(
                f"module.conds has {both[0]}, which is made from the photo, and the data bring a picture of that name; call "
                "theirs otherwise"
            )
        if missing := [name for name in self.conds if name not in self.makers and name not in batch]:
            raise ValueError(
                f"module.conds has {missing[0]}, which is neither made from a photo ({', '.join(NAMES)}) nor in the data "
                f"({', '.join(batch)})"
            )
        return torch.cat(
            [self._made(n, batch) if n in self.makers else self.images(batch, n) for n in self.conds], dim=1
        )

    def _made(self, name: str, batch: Batch) -> Tensor:
        maker, uniform = self.makers[name], None
        if batch.get("ready"):
            return self.images(batch)
        if maker.name == MASKED:
            uniform = torch.from_numpy(self.draws(batch).uniform("masked", NUM_BOX)).to(self.device)
        return maker(self.images(batch), uniform=uniform, region=batch.get("region"))

    # ---- drawing

    def draw_target(
        self, batch: Batch, prompts: list[str], numbers: list[int], options: ControlOptions
    ) -> Tensor:
        batch = batch | {"ready": options.ready}
        further = [
            Further(
                other.controlnet,
                other.cond(batch),
                other.cond_scale if scale is None else scale,
                other.mid_control_only,
            )
            for other, scale in zip(options.loaded, (options.also or {}).values(), strict=True)
        ]
        control = Control(scale=options.control_scale, guess=options.guess, further=further)
        cond, num_steps, steps = self.cond(batch), options.steps or self.sampler.num_steps, itertools.count()

        def network(x_t: Tensor, timestep: Tensor, condition: dict[str, Any]) -> Tensor:
            number = next(steps)
            acts = (
                options.control_start <= number / num_steps
                and (number + 1) / num_steps <= options.control_end
            )
            return self.denoise(x_t, timestep, condition if acts else condition | {"cond": cond[:0]}, control)

        denoise = self.guided({"text": self.embed(prompts), "cond": cond}, options, network)
        return self.draw_from_noise(denoise, (cond.shape[-2], cond.shape[-1]), numbers, options)

    @torch.no_grad()
    def results(self, batch: Batch, options: ControlOptions) -> Results:
        """As Translator; outside a mask the photo stays as it is."""
        region = None
        if options.mask:
            photo = batch["image"]
            region = (
                read_region(options.mask, (photo.shape[-2], photo.shape[-1]))[None, None].to(self.device)
                > 127
            )
        results = dict(super().results(batch | {"region": region}, options))
        if region is not None:
            photo, drawn = self.images(batch), results["image"]
            filled = [
                torch.where(region, one, photo) for one in ([drawn] if isinstance(drawn, Tensor) else drawn)
            ]
            results["image"] = filled if len(filled) > 1 else filled[0]
        return results

    @torch.no_grad()
    def rows(self, batch: Batch, options: ControlOptions) -> Iterator[tuple[str, Results]]:
        """As Translator; of conditions that are made from the photo also `cond`, and `cond_again` from the result."""
        if options.ready:
            raise ValueError("ready=true takes drawn conditions, and here are photos; leave it out")
        makers = [maker for maker in self.makers.values() if maker.name != MASKED]
        for name, results in super().rows(batch, options):
            again = {}
            if makers:
                pictures = {"cond": self.images(batch), "cond_again": main_result(results)}
                again = {key: torch.cat([maker(p) for maker in makers], dim=1) for key, p in pictures.items()}
            yield name, {**results, **again}

    def at_working_size(self, batch: Batch, options: ControlOptions) -> tuple[Batch, tuple[int, int]]:
        given, size_px = super().at_working_size(batch, options)
        if batch.get("region") is not None:
            small = next(iter(given.values())).shape[-2:]
            given["region"] = F.adaptive_max_pool2d(batch["region"].float(), small) > 0  # a thin line stays
        return given, size_px

    def prepare(self, options: ControlOptions, load: Callable[[str], TranslationModule]) -> ControlOptions:
        loaded = []
        for run in options.also or ():
            other = load(run)
            if not isinstance(other, ControlNet) or other.base_hash() != self.base_hash():
                raise ValueError(
                    f"also= names {run}, which is no run of experiment=controlnet on the base of this one"
                )
            del other.parts  # the base is there once
            self.class_maps = tuple(dict.fromkeys((*self.class_maps, *other.class_maps)))
            loaded.append(other.to(self.device).eval())
        return super().prepare(replace(options, loaded=tuple(loaded)), load)

    def check_options(self, options: ControlOptions, *, is_folder: bool) -> None:
        super().check_options(options, is_folder=is_folder)
        scale = self.guidance_scale if options.guidance is None else options.guidance
        if options.guess and (scale == 1 or self.guidance_drops == "prompt"):
            raise ValueError(
                "guess=true needs guidance whose negative branch lacks the condition; set guidance= above 1 for a model of "
                "module.guidance_drops=both or cond"
            )
        made = [maker.name for maker in self.makers.values()]
        if options.ready and (options.also or made in ([], [MASKED]) or len(self.conds) > 1):
            raise ValueError(
                "ready=true is for a model of one condition that is made from a photo, other than masked, and without also=; "
                "leave it out"
            )
        if options.mask and (is_folder or MASKED not in {maker.name for maker in self.makers.values()}):
            raise ValueError(
                "mask= belongs to one photo and a model of masked photos (module.conds=[masked]); leave it out"
            )

    @torch.no_grad()
    def sample_panels(self, batch: Batch) -> dict[str, Tensor]:
        found = self.cond(batch).clamp(0, 1).split(_RGB, dim=1)
        panels = super().sample_panels(batch)
        shown = [key for key in panels if key not in self.inputs()]
        return dict(zip(self.conds, found, strict=True)) | {key: panels[key] for key in shown}

    def usage(self) -> str:
        if self.pipeline is None:
            return ""
        what = next((maker.name for maker in self.makers.values()), "")
        cond = (
            "a tensor (1, 3, H, W) of the photo in [0, 1] with -1 where it is to be filled"
            if what == MASKED
            else f"an RGB picture ({self.conds[0]}"
            + (f"; `color.conditions.MadeCondition.parse({self.conds[0]!r})(photo)`)" if what else ")")
        )
        return (
            f"With diffusers' pipeline the condition is {cond}, `controlnet_conditioning_scale={self.cond_scale:g}`. Its guidance "
            f"keeps the condition in the negative branch; here that lacks: {self.guidance_drops}.\n"
        )
