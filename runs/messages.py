"""What Hydra and OmegaConf complain about, said in one sentence with the nearest names."""

import re
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf

from runs.choices import CONF, groups, is_typo, nearest, nearest_key, options
from runs.config import dotted_keys
from runs.schema import NotTextError, accepts
from runs.words import as_text


def sentence(error: BaseException, overrides: list[str]) -> str:
    """One line for an error that a user can mend."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_option(error.missing_cfg_file)
    if isinstance(error, OverrideParseException):
        is_pair = re.match(r"[+~]*[\w./@-]+=.", error.override)
        advice = (
            f"for text write {as_text(error.override)}"
            if is_pair
            else "write key=value, for example experiment=autoencoder"
        )
        return f"cannot read '{error.override}'; {advice}"
    text = str(error)
    if isinstance(error, NotTextError):
        given = [word for word in overrides if word.lstrip("+").startswith(f"{error.key}=")]
        text += f"; for text write {as_text(given[-1])}" if given else ""
    key = re.search(r"Could not override '([^'\n]+)'", text)
    if isinstance(error, HydraException) and key:
        return _unknown_key(key[1].strip(), overrides)
    if isinstance(error, HydraException):
        text = text.partition("\n")[0]
    if isinstance(error, OSError) and error.strerror is not None:
        text = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    notes = getattr(error, "__notes__", [])
    return " ".join(" ".join([text or type(error).__name__, *notes]).split())


def _unknown_option(name: str) -> str:
    group, _, option = str(name).removesuffix(".yaml").partition("/")
    if group not in groups():
        return f"there is no config '{name}'{nearest(name, groups())}"
    return f"there is no {group} '{option}'{nearest(option, options(group))}"


def _unknown_key(key: str, overrides: list[str]) -> str:
    config = _composed(overrides)
    keys = [*dotted_keys(config), "experiment"]
    if not is_typo(key, keys) and accepts(config, key):
        return f"{key} is not set by this config; add it with a plus sign: +{key}=VALUE"
    return f"unknown key '{key}'{nearest_key(key, keys)}"


def _composed(overrides: list[str]) -> object:
    """The config with the group choices of the command line alone."""
    chosen = [
        change.input_line
        for change in OverridesParser.create().parse_overrides(overrides)
        if Path(CONF, change.key_or_group.partition("@")[0]).is_dir() and not change.is_sweep_override()
    ]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return OmegaConf.to_container(compose("train", chosen))
        except HydraException:
            return OmegaConf.to_container(compose("train"))
