"""The documented way to a picture of any size: decoder, export, upscaling, export, alignment, export, prediction elsewhere."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from doors.export import export
from doors.options import ExportOptions
from tests.doors.calls import predicted
from tests.runs.conftest import Door

SHORT = (
    "trainer.max_steps=1",
    "trainer.limit_val_batches=0",
    "trainer.enable_progress_bar=false",
    "trainer.accelerator=cpu",
    "datamodule.batch_size=2",
    "callbacks.samples=null",
)
SMALL = ("module.unet.block_out_channels=[8,16,16]", "module.unet.norm_num_groups=4")


@pytest.mark.slow
def test_each_stage_starts_from_the_export_of_the_one_before(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(name: str, *words: str) -> None:
        assert door(f"experiment={name}", *SHORT, *words, f"run_dir={name}") == 0
        export(ExportOptions(run=name, output=f"{name}_export"))

    widths = ("module.decoder.block_out_channels=[8,8]", "module.decoder.norm_num_groups=4")
    trained("implicit_decoder", *widths, "module.decoder.widths=[16,16]")
    decoder = ("+module/decoder=implicit", "module.decoder.source=implicit_decoder_export")
    trained("arbitrary_scale_upscaling", *decoder, *SMALL)
    trained("alignment", *decoder, *SMALL, "module.start=arbitrary_scale_upscaling_export")
    missing = door("experiment=alignment", *SHORT, *SMALL, decoder[0], "module.decoder.source=nothing")
    assert "nothing has no folder decoder/; give the folder that export.py wrote" in str(missing)

    other = tmp_path / "elsewhere"
    other.mkdir()
    shutil.move("alignment_export", other / "model")
    shutil.rmtree("implicit_decoder_export")
    monkeypatch.chdir(other)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)).save("a.png")
    pictures = {}
    for name, words in {
        "scale": {"scale": 3.7},
        "size": {"size": "59x118"},
        "crop": {"scale": 3.7, "crop": "10,20,30,40"},
    }.items():
        assert predicted(run="model", input="a.png", output=name, steps=2, device="cpu", **words) == 0
        pictures[name] = np.asarray(Image.open(f"{name}/a.png")).astype(int)
    assert pictures["scale"].shape == (59, 118, 3)
    assert np.array_equal(pictures["scale"], pictures["size"])
    assert np.abs(pictures["crop"] - pictures["scale"][10:40, 20:60]).max() <= 1
