from pathlib import Path

import pytest
import torch

from networks.squeezenet import SqueezeNetFeatures


@pytest.fixture
def squeezenet_dir(tmp_path: Path) -> Path:
    """A folder with a randomly initialised SqueezeNet under the expected name."""
    torch.manual_seed(0)
    folder = tmp_path / "squeezenet"
    folder.mkdir()
    state = {f"features.{key}": value for key, value in SqueezeNetFeatures().features.state_dict().items()}
    torch.save(state, folder / "squeezenet1_1_random.pth")
    return tmp_path


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A torch.hub cache without weights; a download would fail the test."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def refuse(*args, **kwargs):
        raise AssertionError(f"a metric tried to download {args[0]}")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path / "hub"


@pytest.fixture
def shared_weights() -> Path:
    folder = Path(__file__).parents[2].parent / "shared" / "weights"
    if not folder.is_dir():
        pytest.skip("the folder of small pretrained weights is not at hand")
    return folder
