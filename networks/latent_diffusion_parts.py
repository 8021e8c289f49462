"""The parts of a latent diffusion model, new or from any folder in Stable Diffusion's layout."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, SchedulerMixin, UNet2DConditionModel
from torch import nn

from networks.foreign_models import (
    ForeignModelError,
    check_base,
    check_is_no_file,
    foreign_base,
    load_weights,
)
from networks.taef2 import Taef2
from networks.text import TextEncoder

_AUTOENCODERS = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny, "Taef2": Taef2}


class LatentDiffusionParts(nn.Module):
    """U-Net, autoencoder, text encoder and noise schedule of one model; ValueError for widths that do not fit together.

    Args:
        unet: the denoiser.
        vae: None for a model of pixels.
        scheduler: a diffusers scheduler whose config names the noise schedule and the prediction.
        text_encoder: None for an unconditional model (a U-Net without cross-attention blocks).
    """

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL | AutoencoderTiny | None,
        scheduler: SchedulerMixin,
        text_encoder: TextEncoder | None = None,
    ) -> None:
        super().__init__()
        if vae is not None and unet.config.in_channels != vae.config.latent_channels:
            raise ValueError(
                f"the U-Net takes {unet.config.in_channels} latent channels but the autoencoder makes "
                f"{vae.config.latent_channels}; set module.parts.unet.in_channels and out_channels to the latter"
            )
        if text_encoder is not None and unet.config.cross_attention_dim != text_encoder.width:
            raise ValueError(
                f"the U-Net attends to width {unet.config.cross_attention_dim} but the text encoder has width "
                f"{text_encoder.width}; set module.parts.unet.cross_attention_dim to the latter"
            )
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder
        self.scheduler = scheduler

    @classmethod
    def from_folder(
        cls, source: str, *, revision: str | None = None, allow_pickle: bool = False
    ) -> "LatentDiffusionParts":
        """Loads the layout that diffusers' StableDiffusionPipeline writes.

        Args:
            source: a folder (or hub id) with unet/ vae/ scheduler/ and, unless unconditional, text_encoder/ tokenizer/.
            revision: branch, tag or commit of a hub id.
            allow_pickle: whether parts without safetensors may come from pickled .bin files; their tensors are then
                read alone (weights_only), code in them is never run.

        Raises:
            FileNotFoundError: neither a folder in that layout nor a reachable hub id.
            ValueError: pickled weights without allow_pickle, a U-Net that takes more than the latent, or another model than
                Stable Diffusion 1.x or 2.x.
        """
        check_is_no_file(source, "StableDiffusionPipeline")
        # None stands for safetensors where there are any, else pickles.
        options: dict[str, Any] = {"revision": revision, "use_safetensors": None if allow_pickle else True}
        local = Path(source)
        if local.is_dir() and not (local / "unet").is_dir():
            others = ", ".join(sorted(f"{folder.name}/" for folder in local.iterdir() if folder.is_dir()))
            raise FileNotFoundError(
                f"{source} holds no unet/ folder{f' (only {others})' if others else ''}; a base is a folder in the layout of "
                "Stable Diffusion 1.x or 2.x: export a run with `python export.py run=RUN_DIR output=DIR` and give that"
            )
        try:
            check_base(source, revision=revision)
            unet = load_weights(UNet2DConditionModel, source, subfolder="unet", **options)
            scheduler = DDIMScheduler.from_pretrained(source, subfolder="scheduler", revision=revision)
            attends = any("CrossAttn" in name for name in unet.config.down_block_types)
            with_text = unet.config.encoder_hid_dim is not None or attends
            text_encoder = TextEncoder.from_folder(source, **options) if with_text else None
        except ForeignModelError:
            raise
        except (OSError, ValueError, UnpicklingError) as error:
            raise _not_loaded(source, error, allow_pickle) from error
        if local.is_dir() and not (local / "vae").is_dir() and unet.config.in_channels == 3:  # of pixels
            return cls(unet=unet, vae=None, scheduler=scheduler, text_encoder=text_encoder)
        vae = load_vae(source, revision=revision, allow_pickle=allow_pickle)
        taken, made = unet.config.in_channels, vae.config.latent_channels
        fault = f"its U-Net takes {taken} channels and the autoencoder makes {made}"
        if taken > unet.config.out_channels == made and not Path(source, "model_index.json").is_file():
            raise ValueError(
                f"{source} is no base: {fault}, as in a run of diffusing_colors with module.hint_prob above 0 or "
                "module.sees_source=true; give the base of that run as module.parts.source, or train that run on with "
                "resume=RUN_DIR or ckpt_path=CHECKPOINT"
            )
        if taken != made:
            raise foreign_base(source, fault, revision=revision)
        return cls(unet=unet, vae=vae, scheduler=scheduler, text_encoder=text_encoder)

    def named(self) -> dict[str, Any]:
        """What a folder in Stable Diffusion's layout holds, by the name of its subfolder, but for the scheduler."""
        parts = {"unet": self.unet} | ({} if self.vae is None else {"vae": self.vae})
        text = self.text_encoder
        return parts | ({} if text is None else {"text_encoder": text.model, "tokenizer": text.tokenizer})

    def save(self, folder: Path) -> None:
        """Writes every part as from_pretrained of diffusers reads it."""
        for name, part in (self.named() | {"scheduler": self.scheduler}).items():
            part.save_pretrained(folder / name)


def load_vae(
    source: str, *, revision: str | None = None, allow_pickle: bool = False
) -> AutoencoderKL | AutoencoderTiny:
    """An AutoencoderKL or AutoencoderTiny, whichever class its config names, at the top of a folder or hub id or in vae/; or
    TAEF2 of a folder with its official files.

    Arguments and errors as of LatentDiffusionParts.from_folder; ValueError also for another class.
    """
    if Path(source, "taef2_encoder.safetensors").is_file():
        return Taef2.from_official(source)
    check_is_no_file(source, "AutoencoderKL")
    safe = None if allow_pickle else True
    places = ["vae", None]  # of a hub id both are asked for
    if Path(source).is_dir():
        places = ["vae"] if Path(source, "vae").is_dir() else [None]
    failure: Exception = FileNotFoundError(source)
    for place in places:
        where: dict[str, Any] = {"subfolder": place, "revision": revision}
        try:
            kind = _AUTOENCODERS[AutoencoderKL.load_config(source, **where)["_class_name"]]
            return load_weights(kind, source, use_safetensors=safe, **where)
        except KeyError as error:
            expected = " or ".join(_AUTOENCODERS)
            raise ValueError(f"{source} holds a {error.args[0]}; expected {expected}") from error
        except (OSError, ValueError) as error:
            failure = error
    raise _not_loaded(source, failure, allow_pickle)


def _not_loaded(source: str, error: Exception, allow_pickle: bool) -> Exception:
    pickled = [] if allow_pickle else _pickled_parts(Path(source))
    if pickled or (not allow_pickle and "have a file named" in str(error) and ".safetensors" in str(error)):
        kind = "AutoModel" if Path(source, "config.json").is_file() else "DiffusionPipeline"
        return ValueError(
            f"{source} has pickled weights{''.join(f' {name}' for name in pickled)} and no safetensors, and a pickle can "
            f'run code; convert it with python -c "from diffusers import {kind} as D; '
            f"D.from_pretrained('{source}').save_pretrained('NEW_DIR')\", or have its tensors alone read with "
            "allow_pickle: true beside source in the config"
        )
    if isinstance(error, UnpicklingError):
        return ValueError(
            f"{source} has pickled weights that hold more than tensors, which are never loaded; get its safetensors"
        )
    # Without network diffusers says the same, after a FileNotFoundError of the hub's cache.
    hub_lacks_it = "does not appear to have" in str(error) and not isinstance(
        error.__context__, FileNotFoundError
    )
    if Path(source).is_dir() or hub_lacks_it:
        return FileNotFoundError(f"the model {source} cannot be loaded: {str(error).splitlines()[0]}")
    return FileNotFoundError(
        f"no model '{source}': neither a local folder nor a model that the hub answers for; "
        "check the spelling and the network, or give the path of a downloaded folder"
    )


def _pickled_parts(folder: Path) -> list[str]:
    """Pickled weights of the parts (and of the folder itself) that have no safetensors."""
    parts = (folder, folder / "unet", folder / "vae", folder / "text_encoder")
    files = [file for part in parts if not any(part.glob("*.safetensors")) for file in sorted(part.glob("*"))]
    return [str(f.relative_to(folder)) for f in files if f.suffix in (".bin", ".pt", ".pth", ".ckpt")]


def to_dtype(name: str) -> torch.dtype:
    """float32, bfloat16 or float16 from its name; ValueError for another."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ValueError(f"dtype '{name}' is unknown; expected one of {', '.join(known)}")
    return known[name]
