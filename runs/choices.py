"""The names that a command line can use, and the ones nearest to a mistyped one."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from omegaconf import OmegaConf

CONF = Path(__file__).parents[1] / "conf"


def groups() -> list[str]:
    """Config groups by their top folder: experiment, module, datamodule ..."""
    folders = [p.name for p in CONF.iterdir() if p.is_dir() and p.name not in ("hydra", "local", "sweep")]
    return sorted(name for name in folders if options(name))


def options(group: str) -> list[str]:
    """Options of a group, with their sub-folder: `colorize_controlnet`, `paper/palette`."""
    folder = CONF / group
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))


def described(group: str) -> str:
    """One line per option: its name and the first comment of its file without the command."""
    return _listed({name: _comment(CONF / group / f"{name}.yaml") for name in options(group)})


def _comment(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            return line.lstrip("# ").partition(": python")[0].partition(": +")[0]
    return ""


def train_keys() -> list[str]:
    """Top-level keys of a training's config: those of conf/train.yaml and of its groups."""
    own = [str(key) for key in OmegaConf.load(CONF / "train.yaml") if key not in ("defaults", "hydra")]
    return [*own, "module", "datamodule", "trainer", "callbacks", "logger"]


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the choices if none is near."""
    names = sorted(names)
    choices = ", ".join(names)
    listed = f"; choices: {choices}" if 0 < len(choices) <= 300 else ""
    return _did_you_mean(difflib.get_close_matches(name, names, cutoff=0.65)) or listed


def nearest_key(key: str, keys: Iterable[str]) -> str:
    """As `nearest` for a dotted key: its siblings are compared by their last part, unless the parent is wrong too."""
    keys = sorted(keys)
    siblings = _siblings(key, keys)
    name = key.rpartition(".")[2]
    near = [siblings[found] for found in difflib.get_close_matches(name, siblings, cutoff=0.7)]
    elsewhere = [k for k in keys if k.rpartition(".")[2] == name][:3]
    return _did_you_mean(near or elsewhere) or nearest(key, siblings.values() or keys)


def is_typo(key: str, keys: Iterable[str]) -> bool:
    """Whether one letter or two make a dotted key one of its siblings, so that nobody need look further."""
    return bool(difflib.get_close_matches(key.rpartition(".")[2], _siblings(key, keys), cutoff=0.88))


def _siblings(key: str, keys: Iterable[str]) -> dict[str, str]:
    """The keys beside a dotted key by their last parts."""
    parent = key.rpartition(".")[0]
    return {k.rpartition(".")[2]: k for k in keys if k.rpartition(".")[0] == parent}


def _did_you_mean(names: Iterable[str]) -> str:
    listed = " or ".join(f"'{name}'" for name in names)
    return f"; did you mean {listed}?" if listed else ""


def help_text() -> str:
    """What `python train.py --help` prints. Hydra's own way there reads every group twice, which takes as long again."""
    return str(OmegaConf.load(CONF / "hydra" / "help" / "train.yaml").template)


def _groups_text() -> str:
    return _listed({g: ", ".join(options(g)) for g in groups() if g not in ("experiment", "module")})


def _listed(texts: dict[str, str]) -> str:
    width = max(map(len, texts), default=0)
    return "\n".join(f"  {name:<{width}}  {text}".rstrip() for name, text in texts.items())


OmegaConf.register_new_resolver("described", described, replace=True)
OmegaConf.register_new_resolver("group_options", _groups_text, replace=True)
