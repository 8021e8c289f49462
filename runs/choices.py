"""The names that a command line can use, and the ones nearest to a mistyped one."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from omegaconf import OmegaConf

CONF = Path(__file__).parents[1] / "conf"


def groups() -> list[str]:
    """Config groups by their top folder: experiment, module, datamodule ..."""
    return sorted(
        p.name
        for p in CONF.iterdir()
        if p.is_dir() and p.name not in ("hydra", "local", "sweep") and options(p.name)
    )


def options(group: str) -> list[str]:
    """Options of a group, with their sub-folder: `colorize_controlnet`, `paper/palette`."""
    folder = CONF / group
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))


def described(group: str) -> str:
    """One line per option: its name and the first comment of its file without the command."""
    names = options(group)
    width = max(map(len, names), default=0)
    return "\n".join(
        f"  {name:<{width}}  {_comment(CONF / group / f'{name}.yaml')}".rstrip() for name in names
    )


def _comment(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            return line.lstrip("# ").partition(": python")[0].partition(": +")[0]
    return ""


def train_keys() -> list[str]:
    """Top-level keys of a training's config: those of conf/train.yaml and of its groups."""
    config = OmegaConf.to_container(OmegaConf.load(CONF / "train.yaml"))
    assert isinstance(config, dict)
    found = [str(key) for key in config if key not in ("defaults", "hydra")]
    for entry in config["defaults"]:
        name = next(iter(entry)) if isinstance(entry, dict) else entry
        if name in ("module", "datamodule", "trainer", "callbacks", "logger"):
            found.append(name)
    return found


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the choices if none is near."""
    names = sorted(names)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.65)
    if near:
        return "; did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    choices = ", ".join(names)
    return f"; choices: {choices}" if 0 < len(choices) <= 300 else ""


def nearest_key(key: str, keys: Iterable[str]) -> str:
    """As `nearest` for a dotted key: its siblings are compared by their last part, unless the parent is wrong too."""
    parent, _, name = key.rpartition(".")
    keys = sorted(keys)
    siblings = {k.rpartition(".")[2]: k for k in keys if k.rpartition(".")[0] == parent}
    near = difflib.get_close_matches(name, siblings, n=3, cutoff=0.7)
    if near:
        return "; did you mean " + " or ".join(f"'{siblings[n]}'" for n in near) + "?"
    elsewhere = [k for k in keys if k.rpartition(".")[2] == name]
    if elsewhere:
        return "; did you mean " + " or ".join(f"'{k}'" for k in elsewhere[:3]) + "?"
    return nearest(key, siblings.values() if siblings else keys)


def is_typo(key: str, keys: Iterable[str]) -> bool:
    """Whether one letter or two make a dotted key one of its siblings, so that nobody need look further."""
    parent, _, name = key.rpartition(".")
    siblings = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == parent]
    return bool(difflib.get_close_matches(name, siblings, cutoff=0.88))


def help_text() -> str:
    """What `python train.py --help` prints. Hydra's own way there reads every group twice, which takes as long again."""
    config = OmegaConf.to_container(OmegaConf.load(CONF / "hydra" / "help" / "train.yaml"), resolve=True)
    assert isinstance(config, dict)
    return str(config["template"])


def _groups_text() -> str:
    width = max(map(len, groups()), default=0)
    listed = [g for g in groups() if g not in ("experiment", "module")]
    return "\n".join(f"  {group:<{width}}  {', '.join(options(group))}" for group in listed)


OmegaConf.register_new_resolver("described", described, replace=True)
OmegaConf.register_new_resolver("group_options", _groups_text, replace=True)
