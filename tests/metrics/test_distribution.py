import pytest
import torch
from skimage import data
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
from torchvision.models import squeezenet1_1

from metrics.distribution import FrechetDistance
from metrics.perceptual import Lpips, SqueezeNetDistance
from metrics.weights import MissingWeightsError


def images(seed: int, count: int = 6) -> torch.Tensor:
    return torch.rand(count, 3, 48, 48, generator=torch.Generator().manual_seed(seed))


def test_same_set_has_distance_zero_and_noise_moves_it(squeezenet_dir):
    metric = FrechetDistance("squeezenet", weights_dir=squeezenet_dir)
    assert metric.report_name == "frechet_squeezenet"
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
        (lambda: SqueezeNetDistance("conf"), "holds no squeezenet1_1"),
    ],
)
def test_missing_weights_are_explained_and_never_downloaded(build, message, empty_hub):
    with pytest.raises(MissingWeightsError, match=message):
        build()


def test_unknown_backbone_is_named():
    with pytest.raises(ValueError, match="expected inception or squeezenet"):
        FrechetDistance("vgg")
    with pytest.raises(ValueError, match="expected one of alex"):
        Lpips("resnet")


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
    assert metric.report_name == "fid"
    metric.update(images(0, 3), images(0, 3))
    assert metric.compute().count == 3
    assert abs(metric.compute().mean) < 0.1
