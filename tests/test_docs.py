"""Commands that README and docs show name things that exist; the page on adding a method does what it says."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from runs.choices import CONF
from runs.config import load_config, resolved
from runs.options import parse

ROOT = Path(__file__).parents[1]
PAGES = sorted(p.relative_to(ROOT) for p in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")))
OWN_TEST = Path("docs/add_a_method.md")  # its commands are run below
# A stand-in for what a page leaves to the reader.
NAMES = {"experiment=NAME": "experiment=autoencoder"}


def commands(page: Path) -> list[list[str]]:
    """Words after `python` of every command in the code blocks of a page, without [optional] marks and comments."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    shell = [line.removeprefix("$ ") for line in lines if re.match(r"(\$ )?python \S", line)]
    return [shlex.split(line, comments=True)[1:] for line in shell]


@pytest.mark.parametrize("page", [p for p in PAGES if p != OWN_TEST], ids=str)
def test_shown_commands_are_accepted(page: Path) -> None:
    for program, *words in commands(page):
        plain = [NAMES.get(word, word) for word in words]
        match program:
            case "train.py":
                check_training(plain)
            case "evaluate.py" | "predict.py" | "export.py":
                check_door(program, plain)
            case "-m":
                assert importlib.util.find_spec(plain[0]), plain[0]
            case "-c":
                continue
            case _:
                raise AssertionError(f"{page} shows an unknown program: {program}")


def check_training(words: list[str]) -> None:
    words = [w for w in words if w not in ("-m", "--help", "--cfg", "job")]
    if not any(w.startswith("experiment=") for w in words):
        words = ["experiment=autoencoder", *words]  # resume=RUN_DIR has the run's own
    single = [first_choice(word) for word in words]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", single)
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, "DIR")
    resolved(config)


def first_choice(word: str) -> str:
    """The word with the first value of a sweep such as key=1,2."""
    parsed = OverridesParser.create().parse_override(word)
    return word.partition(",")[0] if parsed.is_sweep_override() else word


def check_door(program: str, words: list[str]) -> None:
    from runs.evaluation import EvaluateOptions
    from runs.exporting import ExportOptions
    from runs.prediction import PredictOptions

    kinds = {"evaluate.py": EvaluateOptions, "predict.py": PredictOptions, "export.py": ExportOptions}
    if "--help" in words:
        return
    _, overrides = parse(kinds[program], words, program)
    if overrides:
        assert program == "evaluate.py", f"{program} {overrides}"
        assert all(re.match(r"datamodule[.=]", word) for word in overrides), overrides


def test_linked_files_exist() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#]+)", text):
            if "://" not in link:
                assert ((ROOT / page).parent / link).exists(), f"{page} links to {link}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_method_of_the_page_trains_and_predicts(tmp_path: Path) -> None:
    if not (ROOT / "pretrained" / "autoencoder" / "vae").is_dir():
        pytest.skip("pretrained/autoencoder is not at hand")
    copy = tmp_path / "project"
    rooms = (
        "callbacks",
        "color",
        "conf",
        "datamodules",
        "diffusion",
        "lightning_modules",
        "metrics",
        "networks",
    )
    for room in (*rooms, "runs"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "tests" / "lightning_modules").mkdir(parents=True)
    for file in ("train.py", "predict.py", "pyproject.toml", "tests/__init__.py", "tests/models.py"):
        shutil.copy(ROOT / file, copy / file)
    (copy / "pretrained").symlink_to(ROOT / "pretrained")
    text = (ROOT / OWN_TEST).read_text(encoding="utf-8")
    blocks = re.findall(r"^`([\w/]+\.\w+)`:\n\n```\w+\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    for file, content in blocks:
        assert not (copy / file).exists()
        (copy / file).write_text(content, encoding="utf-8")
    write_photo(copy / "photo.jpg")
    for words in commands(OWN_TEST):
        done = subprocess.run([sys.executable, *words], cwd=copy, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    assert load_config(copy / "outputs" / "first_try")["trainer"]["max_steps"] == 2
    assert (copy / "outputs" / "coloured" / "photo.png").is_file()


def write_photo(path: Path) -> None:
    import numpy as np
    from PIL import Image

    ramp = np.linspace(0, 255, 70 * 90 * 3).reshape(70, 90, 3)
    Image.fromarray(ramp.astype(np.uint8)).save(path)
