"""Lightning's private names: in one file, and all of them where that file expects them."""

import re
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from reliability import lightning_internals
from reliability.lightning_internals import check_names

ROOT = Path(__file__).parents[2]
ROOMS = ("callbacks", "datamodules", "lightning_modules", "reliability", "runs")
PRIVATE = re.compile(
    r"\b(fit_loop|epoch_loop|val_loop|batch_progress|precision_plugin)\b|_connector\b|\.launcher\b|_batches_that_stepped"
    r"|trainer\.[\w.]*\._|from lightning\S* import .*\b_"
)
# A counter without a public name, in rooms that may not import reliability; what the second file does is public.
COUNTER = {"lightning_modules/learning.py", "datamodules/step_datamodule.py"}
FORWARD_CONTEXT = {"callbacks/samples.py": "trainer.precision_plugin.forward_context()"}


def trainer(tmp_path: Path) -> Trainer:
    return Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False)


def test_lightning_has_every_name_that_is_used(tmp_path: Path) -> None:
    check_names(trainer(tmp_path))


def test_a_name_that_a_release_moves_is_named_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lightning_internals, "NAMES", ("fit_loop.epoch_loop._moved",))
    with pytest.raises(
        ValueError,
        match=r"^Lightning \S+ has no trainer\.fit_loop\.epoch_loop\._moved, which reliability/l",
    ) as caught:
        check_names(trainer(tmp_path))
    assert "\n" not in str(caught.value)


def test_every_private_name_is_in_that_one_file() -> None:
    found = {}
    for room in ROOMS:
        for path in (ROOT / room).glob("*.py"):
            lines = path.read_text(encoding="utf-8").splitlines()
            if hits := [line.strip() for line in lines if PRIVATE.search(line)]:
                found[path.relative_to(ROOT).as_posix()] = hits
    del found["reliability/lightning_internals.py"]
    for name in COUNTER & found.keys():
        (line,) = found.pop(name)
        assert "fit_loop.epoch_loop.batch_progress.total" in line
    for name in FORWARD_CONTEXT.keys() & found.keys():
        (line,) = found.pop(name)
        assert FORWARD_CONTEXT[name] in line
    assert not found


def test_the_text_lists_the_names_that_the_code_uses() -> None:
    """No name outlives its use, and none is used without being looked up."""
    text = Path(lightning_internals.__file__).read_text(encoding="utf-8")
    code = text[text.index("# ---- counters") :]
    private = set(re.findall(r"(?:trainer|loop|launcher)\.[\w.]*?\b(_[a-z]\w+)", code))
    listed = {part for name in lightning_internals.NAMES for part in name.split(".")}
    assert private <= listed
    assert {part for part in listed if part.startswith("_")} <= set(re.findall(r"\b_\w+", code))
