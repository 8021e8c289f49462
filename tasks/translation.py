"""Translation from one domain to another, from unpaired or paired pictures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor
from torchmetrics import Metric

from metrics.translation import CondError, ContentDistance, CyclePsnr, LpipsDiversity
from metrics.weights import LpipsNet
from tasks.base import Column, Results, Task, as_picture, batch_entry, first_sample, main_result
from tasks.generation import SET_COLUMNS, set_metrics
from tasks.reconstruction import PAIR_COLUMNS, pair_metrics


@dataclass(frozen=True, kw_only=True)
class Translation(Task):
    """Which way is translated, and which networks measure.

    Results: the translated picture, the main one, or several samples of it; where a method has it `cycle`, the
    translation back into the input's domain; `cond` and `cond_again`, the condition and the one made from the result.
    """

    name: ClassVar[str] = "translation"
    columns: ClassVar[tuple[Column, ...]] = (
        *SET_COLUMNS,
        Column("cycle_psnr", "cycle PSNR", 2, "higher", "dB of the translation back, against the input"),
        Column(
            "cond_error", "condition", 4, "lower", "difference of the condition made anew from the result"
        ),
        Column("content_distance", "content", 3, "lower", "LPIPS between result and input"),
        Column("diversity", "diversity", 3, "higher", "mean LPIPS between samples of one input"),
        *PAIR_COLUMNS,
    )

    needs: ClassVar[tuple[str, ...]] = ("image_a", "image_b")

    direction: Literal["a_to_b", "b_to_a"] = "a_to_b"
    """Which of image_a and image_b is the input and which the target domain; of no effect on pairs."""
    paired: bool = False
    """Whether input and target show the same thing, so that results have a truth: adds psnr, ssim and lpips."""
    fid_backbone: str = "inception"
    """"inception" is FID and KID, any other backbone a distance under its own name (see `feature_network`)."""
    lpips_net: LpipsNet = "alex"
    """LPIPS backbone."""
    weights_dir: str | None = None
    """Folder with LPIPS, SqueezeNet or timm weights."""

    def metrics(self) -> dict[str, Callable[[], Metric]]:
        builders = set_metrics(self.fid_backbone, self.weights_dir) | {
            "cycle_psnr": CyclePsnr,
            "cond_error": CondError,
            "content_distance": partial(ContentDistance, self.lpips_net, weights_dir=self.weights_dir),
            "diversity": partial(LpipsDiversity, self.lpips_net, weights_dir=self.weights_dir),
        }
        return builders | (pair_metrics(self.lpips_net, self.weights_dir) if self.paired else {})

    def arguments(self, results: Results, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Results, inputs and pictures of the target domain; of a way back and several samples what there is."""
        given: dict[str, Any] = {"pred": as_picture(main_result(results))}
        given["target"] = self.target_image(batch)
        if self._input_key(batch) in batch:
            given["image"] = self.input_image(batch)
        if "cycle" in results:
            given["cycle"] = as_picture(first_sample(results["cycle"]))
        given |= {key: first_sample(results[key]) for key in ("cond", "cond_again") if key in results}
        samples = next(iter(results.values()))
        if not isinstance(samples, Tensor) and len(samples) > 1:
            given["samples"] = [as_picture(sample) for sample in samples]
        return given

    def baselines(self, batch: Mapping[str, Any], fitted: Any | None = None) -> dict[str, Results]:
        """The input itself, where the data bring one."""
        return {"input": {"image": self.input_image(batch)}} if self._input_key(batch) in batch else {}

    def truth(self, batch: Mapping[str, Any]) -> Tensor | None:
        return self.target_image(batch) if self.paired else None

    def input_image(self, batch: Mapping[str, Any]) -> Tensor:
        """The pictures that are translated, (B, 3, H, W) in [0, 1]."""
        return batch_entry(batch, self._input_key(batch))

    def target_image(self, batch: Mapping[str, Any]) -> Tensor:
        """Pictures of the target domain, (B, 3, H, W) in [0, 1]; of the same things only with pairs."""
        return batch_entry(batch, self._domains(batch)[1])

    def _input_key(self, batch: Mapping[str, Any]) -> str:
        return self._domains(batch)[0]

    def _domains(self, batch: Mapping[str, Any]) -> tuple[str, str]:
        """The entries that hold the input and the target: of pairs `source` and `image`."""
        if "image" in batch:
            if self.direction != "a_to_b":
                raise ValueError(
                    f"protocol.direction={self.direction} has no effect on pairs; leave it out, or set datamodule.reverse=true"
                )
            return "source", "image"
        return ("image_a", "image_b") if self.direction == "a_to_b" else ("image_b", "image_a")

    @classmethod
    def check_sample(cls, sample: Mapping[str, Any]) -> None:
        """As Task; pairs, and photos from which a condition is made, hold the target as `image`."""
        if "image" not in sample:
            super().check_sample(sample)
