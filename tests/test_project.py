"""What holds for the project as a whole: configs, the lock file, portability, the direction of imports."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from runs.choices import CONF, options
from runs.config import resolved

ROOT = Path(__file__).parents[1]
# A room imports itself and rooms of a lower number.
LEVELS = {
    "color": 0,
    "diffusion": 1,
    "networks": 1,
    "metrics": 2,
    "datamodules": 3,
    "tasks": 3,
    "lightning_modules": 4,
    "reliability": 4,
    "callbacks": 5,
    "runs": 6,
    "doors": 7,
}
RUNNERS = {"lightning", "hydra", "omegaconf", "wandb"}  # not for the rooms that hold tensors and networks


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_composes_and_passes_the_checks(name: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"experiment={name}"])
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, "DIR")
    checked = resolved(config)  # which calls runs.schema.check_config
    assert checked["experiment_name"] == Path(name).name


@pytest.mark.parametrize("path", sorted((CONF / "experiment" / "paper").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_number_of_a_paper_setting_has_its_source_beside_it(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        if re.search(r":\s*\[?[-\d.]+", line.partition("#")[0]):
            assert "#" in line, f"no source: {line}"


def locked() -> dict[str, str]:
    """Lines of each requirement of the lock file by NAME==VERSION."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    blocks = re.split(
        r"^(?=[A-Za-z0-9])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE
    )
    return {block.split()[0]: block for block in blocks if block.strip()}


def test_the_lock_file_has_hashes_and_names_no_host() -> None:
    found = locked()
    assert len(found) > 50
    for name, block in found.items():
        assert re.match(r"[\w.-]+==[\w.+]+$", name), name
        assert "--hash=sha256:" in block, name
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    for part in ("://", "--index-url", "--extra-index-url", "--find-links", "--trusted-host"):
        assert not re.search(rf"^[^#]*{part}", text, flags=re.MULTILINE), part


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lists = [
        project["project"]["dependencies"],
        *project["project"]["optional-dependencies"].values(),
        *project["dependency-groups"].values(),
    ]
    return [Requirement(text) for group in lists for text in group]


# Malicious uploads, and releases in which reading a file runs code: what is bad, and a release that is.
BAD_RELEASES = [
    ("lightning", "==2.6.2", "2.6.2"),  # GHSA-w37p-236h-pfx3
    ("lightning", "==2.6.3", "2.6.3"),
    ("pytorch-lightning", "==2.6.2", "2.6.2"),
    ("pytorch-lightning", "==2.6.3", "2.6.3"),
    ("torch", "<2.6", "2.5.1"),  # CVE-2025-32434: weights_only=True could be passed by
    ("transformers", "<4.38", "4.37.2"),  # CVE-2024-3568: pickles in checkpoints
    ("pillow", "<10.3", "10.2.0"),  # CVE-2023-4863, CVE-2024-28219: overflows while decoding
    ("pyyaml", "<5.4", "5.3.1"),  # CVE-2020-14343: code from full_load
]


@pytest.mark.parametrize(("name", "bad", "release"), BAD_RELEASES)
def test_no_known_bad_release_is_locked_or_allowed(name: str, bad: str, release: str) -> None:
    assert release in SpecifierSet(bad)
    for requirement in map(Requirement, locked()):
        versions = [s.version for s in requirement.specifier]
        assert requirement.name != name or versions[0] not in SpecifierSet(bad), str(requirement)
    for requirement in declared():
        assert requirement.name != name or release not in requirement.specifier, str(requirement)


def test_every_dependency_has_an_upper_bound_and_is_locked() -> None:
    names = {name.partition("==")[0] for name in locked()}
    for requirement in declared():
        assert any(s.operator in ("<", "==", "~=") for s in requirement.specifier), str(requirement)
        assert requirement.name in names, f"{requirement.name} is not in requirements.lock"


def test_no_file_names_a_machine_or_a_registry() -> None:
    folders = "|".join(("work", "home", "root", "Users", "mnt"))
    hosts = "|".join(re.escape(h) for h in ("pypi" + ".org", "python" + "hosted", "index" + "-url ="))
    pattern = re.compile(rf"(?<![\w.$}}\])-])/(?:{folders})/\w|{hosts}")
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # weights and pictures
        found = pattern.search(text)
        assert found is None, f"{path.relative_to(ROOT)}: {found.group()}"


def imported(path: Path) -> Iterator[str]:
    """Top-level packages that a file imports anywhere in its text."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.partition(".")[0]


# Packages whose import has another name than they have in a registry.
IMPORT_NAMES = {
    "hydra-core": "hydra",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "simpleitk": "SimpleITK",
}


def test_the_dependencies_are_the_packages_that_the_code_imports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [Requirement(text).name for text in project["dependencies"]]
    extras = [Requirement(text).name for texts in project["optional-dependencies"].values() for text in texts]
    wanted, optional = (
        {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in part} for part in (names, extras)
    )
    files = [
        path for path in tracked_files() if path.suffix == ".py" and path.parts[len(ROOT.parts)] != "tests"
    ]
    own = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in files}
    found = {package for path in files for package in imported(path)} - set(sys.stdlib_module_names) - own
    assert wanted - found == set(), "declared, but imported nowhere: drop it, or leave it to what needs it"
    assert found - wanted - optional == set(), "imported, but not declared in pyproject.toml"


@pytest.mark.parametrize("room", sorted(LEVELS))
def test_imports_point_downward(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        for package in imported(path):
            if package in LEVELS:
                lower = LEVELS[package] < LEVELS[room]
                assert package == room or lower, f"{path.relative_to(ROOT)} imports {package}"
            if LEVELS[room] <= LEVELS["networks"]:
                assert package not in RUNNERS, f"{path.relative_to(ROOT)} imports {package}"
