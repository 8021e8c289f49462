"""The demo: trains the colorizer for a few minutes and compares it with the shipped one: python -m doors.demo"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from doors.options import CompareOptions, Words, parse
from lightning_modules.options import option
from runs.cli import run_door
from runs.config import stamp

USAGE = (
    "python -m doors.demo [steps=N] [output=DIR] [KEY=VALUE of the training, such as trainer.accelerator=cpu]"
)
SHIPPED = "colorize_controlnet"
NUM_STEPS = 600  # optimiser steps of the fresh run: about 3 minutes on 2 cores
BATCH_SIZE = 16
NUM_WARMUP_STEPS = 30
# Larger than what the models see, so that the pictures are worth looking at.
SIZE_PX, NUM_IMAGES = 160, 24
INTRO = (
    "The fresh run was trained by this demo within minutes, by\n{command}\nIt has seen crops from the left part of these very "
    f"photos, so it shows that training works, not how well the method does on new photos. The shipped model is "
    f"pretrained/{SHIPPED}; its card names its data and figures. All get the grey photo and keep its lightness. The vivid "
    "sample takes ten steps and its full chroma; the model's default takes one step, which draws the expected colour, a "
    "calmer and on average nearer guess."
)


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of the demo."""

    steps: int = option("optimiser steps of the fresh run", NUM_STEPS)
    output: str = option("folder of the page", "outputs/demo")


def demo(options: DemoOptions, overrides: Sequence[str]) -> Path:
    """Trains and compares, and returns the page."""
    from doors.compare import compare
    from runs.load import locate

    locate(SHIPPED)  # before minutes of training, not after
    run_dir = Path("outputs") / SHIPPED / stamp()
    command = training_command(options.steps, run_dir, overrides)
    shown = " ".join(["python", *command[1:]])
    sys.stdout.write(f"training: {shown}\n")
    sys.stdout.flush()
    if subprocess.run(command, check=False).returncode:
        raise ChildProcessError("the training of the demo failed; the lines above say why")
    methods = f"fresh run={run_dir}; shipped model={SHIPPED}; a vivid sample={SHIPPED}@steps=10,chroma=1"
    door = CompareOptions(methods=methods, split="val", limit=NUM_IMAGES, output=options.output)
    data = ["datamodule=builtin_photos", f"datamodule.size_px={SIZE_PX}"]
    written = compare(Words(door, {}, data, {}), INTRO.format(command=shown)) / "index.html"
    sys.stdout.write(f"open {written} in a browser\n")
    return written


def training_command(num_steps: int, run_dir: Path, overrides: Sequence[str] = ()) -> list[str]:
    """The command line of the fresh run: the main experiment on the built-in photos, shortened."""
    return [
        sys.executable,
        "train.py",
        f"experiment={SHIPPED}",
        "callbacks=cached",
        f"datamodule.batch_size={BATCH_SIZE}",
        f"trainer.max_steps={num_steps}",
        f"trainer.val_check_interval={num_steps}",
        f"module.num_warmup_steps={min(NUM_WARMUP_STEPS, num_steps)}",
        f"run_dir={run_dir}",
        *overrides,
    ]


def main() -> None:
    """Parses the options, then runs the demo."""
    words = parse(DemoOptions, sys.argv[1:], USAGE).refuse(method=True, overrides=False)
    from runs.logs import run_log

    with run_log(None):
        demo(words.door, words.overrides)


if __name__ == "__main__":
    run_door(main)
