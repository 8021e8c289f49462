"""Which data a trained run reads: its own, or what the user gives instead."""

from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import MISSING

from runs.config import override
from runs.load import REPOSITORY, resolve_shipped_paths


def with_datamodule(config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The run's config with its data changed by words such as datamodule.root=DIR or datamodule=builtin_photos.

    Raises:
        ValueError: an unknown key or value, a key of something else, or a key that is left without a value.
    """
    others = [word for word in overrides if not word.lstrip("+").startswith(("datamodule=", "datamodule."))]
    if others:
        raise ValueError(
            f"{others[0]} has no effect here, as the run is trained; of its config only datamodule. changes"
        )
    group = [word for word in overrides if word.startswith("datamodule=")]
    if group:
        given = _composed(group[-1], config["seed"])
        # Pictures stay as large as the run saw them, unless the user says otherwise.
        config = {**config, "datamodule": {**given, "size_px": config["datamodule"]["size_px"]}}
    changed = override(config, [word for word in overrides if word not in group])
    missing = [key for key, value in changed["datamodule"].items() if value == MISSING]
    if missing:
        raise ValueError(f"datamodule.{missing[0]} has no value; set it with datamodule.{missing[0]}=VALUE")
    return {**changed, "datamodule": resolve_shipped_paths(changed["datamodule"])}


def _composed(word: str, seed: int) -> dict[str, Any]:
    from omegaconf import OmegaConf

    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        composed = compose("train", [word])
    node = OmegaConf.to_container(OmegaConf.merge(composed, {"seed": seed}), resolve=False)["datamodule"]
    return OmegaConf.to_container(OmegaConf.create({"seed": seed, "datamodule": node}), resolve=True)[
        "datamodule"
    ]
