from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from skimage import data
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
from torchmetrics.image.kid import KernelInceptionDistance
from torchvision.models import squeezenet1_1

from metrics.distribution import FrechetDistance, KernelDistance
from metrics.perceptual import Lpips, SqueezeNetDistance
from metrics.weights import MissingWeightsError


def images(seed: int, count: int = 6) -> torch.Tensor:
    return torch.rand(count, 3, 48, 48, generator=torch.Generator().manual_seed(seed))


def test_same_set_has_distance_zero_and_noise_moves_it(squeezenet_dir):
    metric = FrechetDistance("squeezenet", weights_dir=squeezenet_dir)
    metric.update(images(0), images(0))
    zero = metric.compute()
    assert zero.count == 6
    assert zero.std is None
    assert abs(zero.mean) < 1e-2
    metric.reset()
    metric.update(images(0) * 0.3, images(0))
    assert metric.compute().mean > 10 * abs(zero.mean)


def test_distance_equals_its_definition(squeezenet_dir):
    metric = FrechetDistance("squeezenet", weights_dir=squeezenet_dir)
    pred, target = images(0, 8) * 0.5, images(1, 8)
    metric.update(pred, target)
    with torch.no_grad():
        features = [metric.inception((picture * 255).round().byte()).double() for picture in (pred, target)]
    means = [feature.mean(0) for feature in features]
    centred = [(feature - mean) / 7**0.5 for feature, mean in zip(features, means, strict=True)]
    # tr (A'A B'B)^(1/2) is the nuclear norm of A B', which needs no root of a singular matrix.
    traces = sum(part.square().sum() for part in centred)
    expected = (
        (means[0] - means[1]).square().sum()
        + traces
        - 2 * torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
    )
    assert metric.compute().mean == pytest.approx(expected.item(), rel=1e-3)


def test_the_rows_of_a_table_share_one_network(squeezenet_dir, tmp_path):
    frechet, kernel, other = (
        build("squeezenet", weights_dir=squeezenet_dir)
        for build in (FrechetDistance, KernelDistance, FrechetDistance)
    )
    distance = SqueezeNetDistance(squeezenet_dir).distance.backbone
    assert frechet.inception.net is kernel.net.net is other.inception.net is distance
    (tmp_path / "elsewhere").mkdir()
    file = next(squeezenet_dir.rglob("*.pth"))
    torch.save(
        {k: v + 1 for k, v in torch.load(file, weights_only=True).items()}, tmp_path / "elsewhere" / file.name
    )
    assert FrechetDistance("squeezenet", weights_dir=tmp_path / "elsewhere").inception.net is not distance


def test_batching_does_not_change_the_distance(squeezenet_dir):
    whole, parts = (FrechetDistance("squeezenet", weights_dir=squeezenet_dir) for _ in range(2))
    whole.update(images(0), images(1))
    for part in range(3):
        rows = slice(2 * part, 2 * part + 2)
        parts.update(images(0)[rows], images(1)[rows])
    assert parts.compute().mean == pytest.approx(whole.compute().mean, rel=1e-3)


def test_one_picture_is_too_few(squeezenet_dir):
    metric = FrechetDistance("squeezenet", weights_dir=squeezenet_dir)
    metric.update(images(0, 1), images(1, 1))
    with pytest.raises(ValueError, match="expected at least 2"):
        metric.compute()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FrechetDistance("inception"), "Inception weights"),
        (lambda: Lpips("alex"), "alex backbone of LPIPS"),
        (lambda: FrechetDistance("squeezenet"), "set weights_dir"),
        (lambda: KernelDistance("inception"), "Inception weights"),
        (lambda: FrechetDistance("resnet18"), "weights_dir=null holds no resnet18.safetensors"),
        (lambda: SqueezeNetDistance("conf"), "holds no squeezenet1_1"),
    ],
)
def test_missing_weights_are_explained_and_never_downloaded(build, message, empty_hub):
    with pytest.raises(MissingWeightsError, match=message):
        build()


def test_unknown_backbone_is_named():
    with pytest.raises(ValueError, match="expected inception, squeezenet or the name of a timm model"):
        FrechetDistance("vgg")


def test_feature_distance_grows_with_the_error(squeezenet_dir):
    target = images(0)
    values = []
    for strength in (0.0, 0.2, 0.6):
        metric = SqueezeNetDistance(squeezenet_dir)
        metric.update((1 - strength) * target + strength * images(1), target)
        values.append(metric.compute().mean)
    assert values[0] == 0
    assert values[0] < values[1] < values[2]


def test_trained_squeezenet_ranks_grey_below_noise(shared_weights):
    target = torch.from_numpy(data.astronaut()[:128, :128].copy()).permute(2, 0, 1)[None] / 255.0
    grey = target.mean(1, keepdim=True).expand_as(target)
    distances = []
    for pred in (target, grey, torch.rand_like(target)):
        metric = SqueezeNetDistance(shared_weights)
        metric.update(pred, target)
        distances.append(metric.compute().mean)
    assert distances[0] == 0
    assert distances[0] < distances[1] < distances[2]


def test_lpips_equals_torchmetrics_for_each_image(empty_hub):
    (empty_hub / "checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(
        squeezenet1_1(weights=None).state_dict(), empty_hub / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    )
    pred, target = ((images(seed, 3) * 255).round() / 255 for seed in (0, 1))
    metric = Lpips("squeeze")
    metric.update(pred, target)
    expected = learned_perceptual_image_patch_similarity(
        pred, target, net_type="squeeze", normalize=True, reduction="none"
    )
    torch.testing.assert_close(torch.cat(metric.values), expected)
    assert Lpips("squeeze").net is metric.net


@pytest.fixture
def lpips_dir(shared_weights) -> Path:
    return shared_weights / "lpips"


# The docstring of torchmetrics 1.9 prints those of "squeeze"; those of "alex" are measured with the published weights.
@pytest.mark.parametrize(("net", "expected"), [("squeeze", [0.1024, 0.0938]), ("alex", [0.1312, 0.1420])])
def test_lpips_from_a_folder_has_the_published_values(lpips_dir, empty_hub, net, expected):
    generator = torch.Generator().manual_seed(42)
    pred, target = (torch.rand(2, 3, 100, 100, generator=generator) for _ in range(2))
    metric = Lpips(net, weights_dir=lpips_dir)
    found = metric.net(pred, target, normalize=True).flatten()
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)
    metric.update(pred, target)
    torch.testing.assert_close(metric.all_values(), found, atol=1e-3, rtol=0)


def test_a_file_of_other_weights_is_refused(lpips_dir, tmp_path, empty_hub):
    state = load_file(lpips_dir / "lpips_alex_v0.1.safetensors")
    save_file({"features.0.bias": state["features.0.bias"]}, tmp_path / "lpips_alex_v0.1.safetensors")
    with pytest.raises(ValueError, match="does not hold LPIPS on alex: missing"):
        Lpips("alex", weights_dir=tmp_path)


@pytest.fixture
def timm_dir(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "resnet10t.c3_in1k.safetensors")
    return tmp_path


def test_a_timm_backbone_gives_its_pooled_features_and_its_name(timm_dir):
    metric = FrechetDistance("resnet10t.c3_in1k", weights_dir=timm_dir)
    net = timm.create_model("resnet10t", num_classes=0).eval()
    state = load_file(timm_dir / "resnet10t.c3_in1k.safetensors")
    net.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")})
    image = (images(0, 2) * 255).byte()
    size_px = metric.inception.size_px
    assert size_px == (176, 176)
    scaled = torch.nn.functional.interpolate(image / 255.0, size_px, mode="bicubic", antialias=True)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = net((scaled.clamp(0, 1) - mean) / std)
    torch.testing.assert_close(metric.inception(image), expected, rtol=1e-4, atol=1e-5)
    metric.update(images(0, 2), images(0, 3))
    assert metric.compute().count == 2


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
def test_kernel_distance_equals_torchmetrics(squeezenet_dir):
    ours = KernelDistance("squeezenet", weights_dir=squeezenet_dir)
    theirs = KernelInceptionDistance(feature=ours.net, subsets=1, subset_size=6)
    pred, target = images(0) * 0.6, images(1)
    ours.update(pred, target)
    theirs.update((target * 255).round().byte(), real=True)
    theirs.update((pred * 255).round().byte(), real=False)
    assert ours.compute().mean == pytest.approx(theirs.compute()[0].item(), rel=1e-3)
    assert ours.compute().interval is None


def test_subsets_of_larger_sets_repeat_and_agree_with_the_whole(squeezenet_dir):
    pred, target = images(0, 24) * 0.6, images(1, 20)
    whole, first, second = (
        KernelDistance("squeezenet", weights_dir=squeezenet_dir, subset_size=size, num_subsets=400)
        for size in (20, 12, 12)
    )
    for metric in (whole, first, second):
        metric.update(pred, target)
    assert first.compute() == second.compute()
    assert first.compute().mean == pytest.approx(whole.compute().mean, rel=0.05)
    assert first.compute().count == 24


def test_sets_of_different_sizes_in_pixels_are_refused(squeezenet_dir):
    with pytest.raises(ValueError, match="bring both to one size first"):
        FrechetDistance("squeezenet", weights_dir=squeezenet_dir).update(
            torch.rand(2, 3, 32, 32), torch.rand(2, 3, 40, 40)
        )


@pytest.mark.slow
def test_fid_runs_on_inception_weights_from_the_cache(empty_hub, monkeypatch):
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    file = empty_hub / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    file.parent.mkdir(parents=True)
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: {})
    with monkeypatch.context() as patch:
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.save(inception.FeatureExtractorInceptionV3("any", ["2048"]).state_dict(), file)
    metric = FrechetDistance("inception")
    metric.update(images(0, 3), images(0, 3))
    assert metric.compute().count == 3
    assert abs(metric.compute().mean) < 0.1
