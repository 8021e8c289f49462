"""Models that others have made: which files hold the weights, and what is no Stable Diffusion 1.x or 2.x."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig

_FURTHER_INPUTS = ("addition_embed_type", "class_embed_type", "num_class_embeds")
# Flow matching and EDM have no betas, or say so in one of the other keys.
_SCHEDULE = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": (None, "epsilon", "v_prediction", "sample"),
    "trained_betas": (None,),
    "use_flow_sigmas": (None, False),
    "timestep_type": (None, "discrete"),
}


class ForeignModelError(ValueError):
    """A model, whole and readable, of a kind that this project does not use."""


def load_weights(
    kind: Any, source: str, *, subfolder: str | None, use_safetensors: bool | None, **options: Any
) -> Any:
    """kind.from_pretrained of the plain weights or, where there are none, of the variant that is there (fp16)."""
    variants = [None, "fp16"]  # of a hub id both are asked for
    if Path(source).is_dir():
        suffixes = [".safetensors"] if use_safetensors else [".safetensors", ".bin"]
        variants = [_variant(Path(source, subfolder or ""), suffixes)]
    failure: OSError | None = None
    for variant in variants:
        where = {"subfolder": subfolder, "variant": variant, "use_safetensors": use_safetensors}
        try:
            return kind.from_pretrained(source, **where, **options)
        except OSError as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _variant(folder: Path, suffixes: list[str]) -> str | None:
    """fp16 of `model.fp16.safetensors` and of `model.fp16-00001-of-00002.safetensors`; None beside plain weights."""
    names = [file.stem.split(".") for file in folder.glob("*") if file.suffix in suffixes]
    variants = sorted({name[1].partition("-0")[0] if len(name) > 1 else "" for name in names})
    return variants[0] or None if variants else None


def check_is_no_file(source: str, kind: str) -> None:
    """Raises a ForeignModelError if `source` is a file, or a folder of nothing but one; `kind` is the class that converts it."""
    folder = Path(source)
    files = [folder] if folder.is_file() else []
    if folder.is_dir() and not any(folder.glob("*/")) and not (folder / "config.json").is_file():
        files = sorted(folder.glob("*.safetensors"))
    if files:
        raise ForeignModelError(
            f"{files[0]} is a single file, but a model here is a folder as diffusers writes it; convert it with python -c "
            f"\"from diffusers import {kind} as D; D.from_single_file('{files[0]}').save_pretrained('NEW_DIR')\" and give "
            "NEW_DIR; a checkpoint of this project is converted with python export.py run=RUN_DIR output=NEW_DIR"
        )


def check_base(source: str, **at: Any) -> None:
    """Reads the configs of a folder or hub id and raises a ForeignModelError if they describe no Stable Diffusion 1.x or 2.x.

    OSError where a config is missing.
    """
    for fault in _faults(source, **at):
        raise foreign_base(source, fault, **at)


def foreign_base(source: str, fault: str, **at: Any) -> ForeignModelError:
    """The error of a model that is no base, with the name of the pipeline that it is made for."""
    try:
        pipeline = f" ({DiffusionPipeline.load_config(source, **at)['_class_name']})"
    except (OSError, KeyError):
        pipeline = ""
    return ForeignModelError(
        f"{source}{pipeline} is no base: {fault}; give a folder or hub id in the layout of Stable Diffusion 1.x or 2.x as "
        "module.parts.source, or a run of your own by python export.py run=RUN_DIR output=DIR"
    )


def _faults(source: str, **at: Any) -> Iterator[str]:
    unet = UNet2DConditionModel.load_config(source, subfolder="unet", **at)
    if (kind := unet.get("_class_name", "UNet2DConditionModel")) != "UNet2DConditionModel":
        yield f"its denoiser is a {kind}, expected a UNet2DConditionModel"
    for key in _FURTHER_INPUTS:
        if unet.get(key) is not None:
            yield f"its U-Net takes further inputs ({key}={unet[key]}), which nothing here makes"
    schedule = DDIMScheduler.load_config(source, subfolder="scheduler", **at)
    for key, known in _SCHEDULE.items():
        if schedule.get(key) not in known:
            names = " or ".join(str(value) for value in known if value is not None)
            yield (
                f"its {schedule.get('_class_name', 'scheduler')} has {key}={schedule.get(key)}, expected {names or 'none'} "
                "(schedules of flow matching and EDM are of another kind)"
            )
    if any("CrossAttn" in name for name in unet.get("down_block_types", ())):
        text = CLIPTextConfig.get_config_dict(source, subfolder="text_encoder", **at)[0]
        if text.get("model_type") not in (None, "clip_text_model"):
            yield f"its text encoder is a {text['model_type']}, expected a clip_text_model"
        if text.get("hidden_size") not in (None, unet.get("cross_attention_dim")):
            yield (
                f"its U-Net attends to width {unet.get('cross_attention_dim')}, but its text encoder has width "
                f"{text['hidden_size']}"
            )
