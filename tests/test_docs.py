"""Commands that README and docs show name things that exist; the page on adding a method does what it says."""

import importlib.util
import json
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

from doors.compare import parse_methods, vary
from doors.options import CompareOptions, EvaluateOptions, ExportOptions, PredictOptions, option_fields, parse
from runs.build import located
from runs.choices import CONF, options
from runs.config import load_config, resolved
from runs.load import PRETRAINED, module_class
from tests.test_project import LEVELS

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
            case "evaluate.py" | "predict.py" | "compare.py" | "export.py":
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
    """Its words are the door's, those of a shipped method where one is named, or of the run's data and protocol."""
    kinds = {
        "evaluate.py": EvaluateOptions,
        "compare.py": CompareOptions,
        "predict.py": PredictOptions,
        "export.py": ExportOptions,
    }
    if "--help" in words:
        return
    found = parse(kinds[program], words, program)
    if program == "compare.py":
        for plan in parse_methods(found.door.methods, found.method):
            check_method(plan.runs[0], plan.texts)
            assert not found.door.vary or vary(plan, found.door.vary)
    else:
        check_method(found.door.run, found.method)
    if program in ("predict.py", "export.py"):
        found.refuse()
    assert all(re.match(r"datamodule[.=]", word) for word in found.overrides), found.overrides


def check_method(run: str, texts: dict[str, str]) -> None:
    """The options of a shipped model's method, or of a run's experiment; of another run, those of any shipped one."""
    shipped = [p.parent.name for p in PRETRAINED.glob("*/config.yaml")]
    experiment = re.match(r"outputs/(\w+)/", run)
    if experiment and experiment[1] in options("experiment"):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", [f"experiment={experiment[1]}"])
        kinds = [located(config.module._target_)]
    elif shipped:
        kinds = [module_class(name) for name in ([run] if run in shipped else shipped)]
    else:
        return
    fields = [option_fields(kind.Options) for kind in kinds]
    unknown = [key for key in texts if not any(key in known for known in fields)]
    assert not unknown, f"{run} {unknown}"


def test_linked_files_exist() -> None:
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
        for link in re.findall(r"\]\(([^)#]+)", text):
            if "://" not in link:
                assert ((ROOT / page).parent / link).exists(), f"{page} links to {link}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_methods_of_the_page_need_four_files_each_and_change_none(tmp_path: Path) -> None:
    copy = tmp_path / "project"
    names = [
        *(f"{room}/" for room in LEVELS),
        "conf/",
        "tests/__init__.py",
        "tests/models.py",
        "pyproject.toml",
    ]
    names += [f"{door}.py" for door in ("train", "evaluate", "predict", "compare", "export")]
    for name in names:
        if name.endswith("/"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    (copy / "pretrained").symlink_to(ROOT / "pretrained")
    before = contents(copy)
    text = (ROOT / OWN_TEST).read_text(encoding="utf-8")
    blocks = re.findall(r"^`([\w/]+\.\w+)`:\n\n```\w+\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    for file, content in blocks:
        assert not (copy / file).exists()
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        (copy / file).write_text(content, encoding="utf-8")
    write_photo(copy / "photo.jpg")
    for words in commands(OWN_TEST):
        done = subprocess.run([sys.executable, *words], cwd=copy, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    after = contents(copy)
    assert {name: after[name] for name in before} == before
    created = sorted(after.keys() - before.keys() - {"photo.jpg"})
    assert created == sorted(
        f"{place}{method}"
        for method, network in (("mask_diffusion", "image_features"), ("two_translators", "small_translator"))
        for place, method in (
            ("lightning_modules/", f"{method}.py"),
            ("networks/", f"{network}.py"),
            ("conf/experiment/", f"{method}.yaml"),
            ("tests/lightning_modules/test_", f"{method}.py"),
        )
    )
    written = copy / "outputs"
    assert load_config(written / "first_masks")["trainer"]["max_steps"] == 2
    for name in ("masks/photo.png", "masks/probability/photo.png", "masks/samples/photo_1.png"):
        assert (written / name).is_file(), name
    figures = json.loads((written / "first_figures" / "metrics.json").read_text())
    assert figures["skipped"] == {}  # the baseline has no probability, but the method does
    again = [(written / folder / "photo.png").read_bytes() for folder in ("translated", "again")]
    assert again[0] == again[1]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but what runs and caches write."""
    files = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    skipped = ("outputs", "pretrained", ".pytest_cache", ".cache")
    return {str(p): (folder / p).read_bytes() for p in files if p.parts[0] not in skipped}


def write_photo(path: Path) -> None:
    import numpy as np
    from PIL import Image

    ramp = np.linspace(0, 255, 70 * 90 * 3).reshape(70, 90, 3)
    Image.fromarray(ramp.astype(np.uint8)).save(path)
