"""Whether two commits train, save and draw the same numbers: `python -m benchmarks.same_numbers before=COMMIT`.

Each experiment is trained for a few steps from either commit on this machine, plainly, with accumulation and, where it
has a frozen codec, with a latent cache; losses, final weights and 8-bit results are compared bit for bit.
"""

import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
STEPS = 20
COMMON = [
    f"trainer.max_steps={STEPS}",
    "trainer.val_check_interval=10",
    "trainer.limit_val_batches=2",
    "+trainer.limit_test_batches=1",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
    "trainer.accelerator=cpu",
    "datamodule.batch_size=4",
    "callbacks.samples=null",
]
PLAIN: list[str] = []
ACCUMULATED = [
    "trainer.accumulate_grad_batches=2",
    "datamodule.batch_size=2",
    "trainer.val_check_interval=20",
]
CACHED = ["callbacks=cached", "callbacks.latent_cache.folder=CACHE", "callbacks.samples=null"]
ADVERSARIAL = ["module.discriminator={_target_:networks.discriminator.PatchDiscriminator}"]
EXPERIMENTS = {
    "autoencoder": [PLAIN, ACCUMULATED, ADVERSARIAL],
    "latent_diffusion": [PLAIN, ACCUMULATED, CACHED],
    "colorize_controlnet": [PLAIN, ACCUMULATED, CACHED],
    "diffusing_colors": [PLAIN, ACCUMULATED, CACHED],
    "colorize_regression": [PLAIN, ACCUMULATED, CACHED],
    "vividness_ranker": [PLAIN, ACCUMULATED],
}


def run(tree: Path, words: list[str], door: str = "train.py") -> None:
    """Calls a door of a tree in a process of its own, whose output is shown if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, door, *words], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{door} {' '.join(words)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def outcome(tree: Path, name: str, variant: list[str], folder: Path, photo: Path) -> dict[str, np.ndarray]:
    """Losses by step (as text), final weights and 8-bit results of a training, or of what is in `folder`, by name."""
    run_dir, drawn = folder / "run", folder / "drawn"
    if not (run_dir / "metrics.json").is_file():
        words = [word.replace("CACHE", str(folder / "cache")) for word in variant]
        run(tree, [f"experiment={name}", f"run_dir={run_dir}", *COMMON, *words])
    if not drawn.is_dir() and name != "vividness_ranker":
        given = ["prompt=a cat"] if name == "latent_diffusion" else [f"input={photo}"]
        given += [] if name == "autoencoder" else ["seed=3"]
        run(tree, [f"run={run_dir}", f"output={drawn}", *given], "predict.py")
    with (run_dir / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {
        key: np.array([row[key] for row in rows if row[key]]) for key in rows[0] if key.endswith("/loss")
    }
    state = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")
    found |= {f"weight {key}": weight.float().numpy() for key, weight in state["state_dict"].items()}
    return found | {f"picture {path.name}": np.asarray(Image.open(path)) for path in drawn.rglob("*.png")}


def differences(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> list[str]:
    """One sentence for each thing that is not the same."""
    alone = [f"{key} is in one of them alone" for key in sorted(before.keys() ^ after.keys())]
    found = []
    for key in sorted(before.keys() & after.keys()):
        one, other = before[key], after[key]
        if np.array_equal(one, other):
            continue
        if one.shape != other.shape or one.dtype.kind == "U":
            found.append(f"{key}: {one.flat[:3]} became {other.flat[:3]} ...")
        else:
            largest = np.abs(one.astype(float) - other).max()
            found.append(f"{key} differs by up to {largest:.2e}")
    return alone + found


def main(before: str, keep: str | None = None, only: str | None = None) -> int:
    """Prints a line for each training and returns the number of those that differ."""
    from skimage.data import chelsea

    num_differing = 0
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(keep or scratch).absolute()
        place.mkdir(parents=True, exist_ok=True)
        tree, photo = Path(scratch) / "before", place / "photo.png"
        Image.fromarray(chelsea()).save(photo)
        subprocess.run(["git", "worktree", "add", "--detach", str(tree), before], cwd=ROOT, check=True)
        try:
            for name, variants in EXPERIMENTS.items():
                if only not in (None, name):
                    continue
                for number, variant in enumerate(variants):
                    where = place / f"{name}_{number}"
                    one = outcome(tree, name, variant, where / "before", photo)
                    other = outcome(ROOT, name, variant, where / "after", photo)
                    found = differences(one, other)
                    num_differing += bool(found)
                    words = " ".join(variant) or "plain"
                    print(f"{name}, {words}: {'; '.join(found[:4]) if found else 'the same'}", flush=True)  # noqa: T201
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)
    return num_differing


if __name__ == "__main__":
    sys.exit(main(**dict(word.split("=", 1) for word in sys.argv[1:])))
