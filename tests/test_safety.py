"""Nothing that is loaded runs code: a scan of the whole source, and hostile files at every place where one is read."""

import ast
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from doors.export import export
from doors.options import ExportOptions
from metrics.distribution import FrechetDistance
from metrics.perceptual import Lpips, SqueezeNetDistance
from metrics.weights import MissingWeightsError
from networks.latent_diffusion_parts import LatentDiffusionParts, load_vae
from networks.text import TextEncoder
from reliability.checkpoint_io import AtomicCheckpointIO, newest_whole
from runs.load import load_run
from tests.metrics.conftest import empty_hub  # noqa: F401
from tests.models import tiny_parts
from tests.runs.conftest import TINY, door  # noqa: F401
from tests.runs.saved_runs import save_autoencoder, save_colorizer, save_latent_diffusion

ROOT = Path(__file__).parents[1]
# What a rule would forbid, and why this file needs it.
ALLOWED = {
    ("reliability/checkpoint_io.py", "torch.save"): "the one place that writes checkpoints",
    ("runs/build.py", "instantiate"): "behind the allow-list of targets",
    ("runs/logs.py", "import_module"): "of two fixed names",
    ("runs/build.py", "import_module"): "of listed names, and of files in our rooms",
    ("tests/runs/test_build.py", "pickle"): "shows that a hostile file is one",
    ("tests/runs/test_build.py", "import_module"): "of our own modules",
    ("tests/runs/test_build.py", "weights_only"): "what hostile nodes ask for",
    ("tests/reliability/test_checkpoint_io.py", "weights_only"): "shows that it is refused",
    ("tests/test_safety.py", "weights_only"): "shows that a hostile file is one",
}
PICKLES = {"dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {
    r"pickle\.(load|loads|Unpickler)": "pickle",
    r"eval|exec|compile|__import__": "eval",
    r"(os|posix)\.(system|popen|exec\w+|spawn\w+|posix_spawn\w*)": "shell",
    r"(subprocess\.)?(getoutput|getstatusoutput)": "shell",
    r"yaml\.(load|load_all|unsafe_load\w*|full_load\w*)|.*\.(UnsafeLoader|FullLoader)": "yaml.load",
    r"torch\.(hub|jit|package|export)\.load": "torch.hub",
    r"(.*\.)?load_from_checkpoint": "load_from_checkpoint",
    r"(.*\.)?(instantiate|get_object|get_method|get_class)": "instantiate",
    r"(importlib\.)?import_module": "import_module",
    r"(.*\.)?(extractall|unpack_archive)": "archive",
    r"(.*\.)?torch\.save": "torch.save",
}
KEYWORDS = {
    "shell": (False,),
    "trust_remote_code": (False,),
    "safe_serialization": (True,),
}


def broken_rules(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Name of each rule that a file breaks, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and _hides_pickle(node):
            yield "pickle", node.lineno
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        yield from ((rule, node.lineno) for name, rule in CALLS.items() if re.fullmatch(name, called))
        given = {k.arg: k.value.value if isinstance(k.value, ast.Constant) else ... for k in node.keywords}
        for keyword, values in KEYWORDS.items():
            if keyword in given and given[keyword] not in values:
                yield keyword, node.lineno
        # trainer.save_checkpoint(weights_only=False) writes the optimiser too: it reads nothing.
        if given.get("weights_only") is False and not called.endswith("save_checkpoint"):
            yield "weights_only", node.lineno
        if re.fullmatch(r"(.*\.)?torch\.load", called) and given.get("weights_only") is not True:
            yield "weights_only", node.lineno
        if re.fullmatch(r"(np|numpy)\.load", called) and given.get("allow_pickle", False) is not False:
            yield "allow_pickle", node.lineno


def _hides_pickle(node: ast.Import | ast.ImportFrom) -> bool:
    """Whether an import brings in an unpickler under a name that the other rules do not know."""
    if isinstance(node, ast.ImportFrom):
        errors = all(alias.name.endswith("Error") for alias in node.names)
        return node.module in PICKLES or (node.module == "pickle" and not errors)
    return any(a.name.partition(".")[0] in PICKLES or (a.name == "pickle" and a.asname) for a in node.names)


def sources() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split() if (ROOT / name).is_file()]


def test_no_file_loads_what_can_run_code() -> None:
    found = set()
    for path in sources():
        name = str(path.relative_to(ROOT))
        for rule, line in broken_rules(ast.parse(path.read_text(encoding="utf-8"))):
            if rule == "torch.save" and name.startswith("tests/"):
                continue
            assert (name, rule) in ALLOWED, f"{name}:{line} breaks the rule '{rule}'"
            found.add((name, rule))
    assert found == set(ALLOWED)  # no exception outlives its reason


@pytest.mark.parametrize(
    "line",
    [
        "import pickle as p",
        "from pickle import loads",
        "from joblib import load",
        "pickle.loads(data)",
        "eval('1')",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=wanted)",
        "yaml.load(text, Loader=yaml.Loader)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=wanted)",
        "trainer.fit(module, weights_only=False)",
        "Module.load_from_checkpoint(path)",
        "np.load(path, allow_pickle=True)",
        "AutoTokenizer.from_pretrained(name, trust_remote_code=True)",
        "model.save_pretrained(folder, safe_serialization=False)",
        "hydra.utils.instantiate(node)",
        "archive.extractall(folder)",
    ],
)
def test_the_scan_sees_each_of_them(line: str) -> None:
    assert list(broken_rules(ast.parse(line)))


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.mkdir, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "ran"


def write_hostile(path: Path, mark: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"global_step": 9, "state_dict": Payload(mark)}, path)


def test_the_payload_of_these_tests_is_real(tmp_path: Path, mark: Path) -> None:
    write_hostile(tmp_path / "x.ckpt", mark)
    torch.load(tmp_path / "x.ckpt", weights_only=False)
    assert mark.is_dir()


def test_a_hostile_checkpoint_runs_through_no_door(door, tmp_path: Path, mark: Path) -> None:  # noqa: F811
    command = (*TINY, "run_dir=run", "resume=auto", "trainer.limit_val_batches=0", "callbacks.samples=null")
    assert door(*command) == 0
    last = tmp_path / "run/checkpoints/last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"global_step": 9, "state_dict": Payload(mark)}, last)
    (tmp_path / "run/status").write_text("stopped: SIGTERM\n")
    refusal = f"Checkpoint {last} cannot be read: it is damaged or holds more than tensors and plain values"
    assert door("resume=run").startswith(f"error: {refusal}")
    assert door(*TINY, f"ckpt_path={last}").startswith(f"error: {refusal}")
    # its sum is right, so that resume=auto does not notice it by the sum alone
    assert newest_whole(last.parent) == last
    assert door(*command, "trainer.max_steps=3").startswith(f"error: {refusal}")
    assert not mark.exists()


def test_a_hostile_checkpoint_of_a_downloaded_run_does_not_run(tmp_path: Path, mark: Path) -> None:
    run_dir = save_autoencoder(tmp_path)  # as predict.py, evaluate.py and export.py load it
    checkpoint = run_dir / "checkpoints" / "best.ckpt"
    write_hostile(checkpoint, mark)
    for source in (run_dir, checkpoint):
        with pytest.raises(ValueError, match="holds more than tensors and plain values") as caught:
            load_run(str(source))
        assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.fixture
def pickled_base(tmp_path: Path) -> Path:
    """A base as old hub repositories have it: .bin files alone."""
    folder = tmp_path / "base"
    tiny_parts().save(folder)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    parts = tiny_parts()
    torch.save(parts.unet.state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
    torch.save(parts.vae.state_dict(), folder / "vae" / "diffusion_pytorch_model.bin")
    torch.save(parts.text_encoder.model.state_dict(), folder / "text_encoder" / "pytorch_model.bin")
    return folder


def test_pickled_weights_are_refused_with_the_way_to_convert_them(pickled_base: Path) -> None:
    with pytest.raises(ValueError, match="has pickled weights") as caught:
        LatentDiffusionParts.from_folder(str(pickled_base))
    assert str(caught.value) == (
        f"{pickled_base} has pickled weights unet/diffusion_pytorch_model.bin vae/diffusion_pytorch_model.bin "
        "text_encoder/pytorch_model.bin and no safetensors, and a pickle can run code; convert it with python -c "
        f"\"from diffusers import DiffusionPipeline as D; D.from_pretrained('{pickled_base}').save_pretrained('NEW_DIR')\", "
        "or have its tensors alone read with allow_pickle: true beside source in the config"
    )
    vae = pickled_base / "vae"
    with pytest.raises(
        ValueError, match=f"{vae} has pickled weights diffusion_pytorch_model.bin .* import AutoModel"
    ):
        load_vae(str(vae))


def test_pickled_weights_are_read_on_request_but_never_run(pickled_base: Path, mark: Path) -> None:
    loaded = LatentDiffusionParts.from_folder(str(pickled_base), allow_pickle=True)
    wanted = tiny_parts()
    assert all(torch.equal(v, wanted.state_dict()[k]) for k, v in loaded.state_dict().items())
    for part in (
        "text_encoder/pytorch_model.bin",
        "vae/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.bin",
    ):
        write_hostile(pickled_base / part, mark)
        with pytest.raises((OSError, ValueError)) as caught:
            LatentDiffusionParts.from_folder(str(pickled_base), allow_pickle=True)
        assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_code_beside_a_tokenizer_does_not_run(tmp_path: Path, mark: Path) -> None:
    tiny_parts().save(tmp_path)
    config = tmp_path / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    settings |= {
        "tokenizer_class": "EvilTokenizer",
        "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]},
    }
    config.write_text(json.dumps(settings))
    code = f"from pathlib import Path\nPath({str(mark)!r}).mkdir()\nclass EvilTokenizer: pass\n"
    (tmp_path / "tokenizer" / "evil.py").write_text(code)
    (tmp_path / "evil.py").write_text(code)
    with pytest.raises((OSError, ValueError)):
        TextEncoder.from_folder(str(tmp_path))
    assert not mark.exists()


def test_weights_of_metrics_are_tensors_alone(empty_hub: Path, tmp_path: Path, mark: Path) -> None:  # noqa: F811
    folder = empty_hub / "checkpoints"
    for name in ("alexnet-owt-7be5be79.pth", "weights-inception-2015-12-05-6726825d.pth"):
        write_hostile(folder / name, mark)
    write_hostile(tmp_path / "squeezenet" / "squeezenet1_1.pth", mark)
    with pytest.raises(
        MissingWeightsError, match=r"alexnet-owt-7be5be79.pth is damaged or holds more than tensors"
    ):
        Lpips("alex")
    pytest.importorskip("torch_fidelity")
    with pytest.raises(MissingWeightsError, match=r"6726825d.pth is damaged or holds more than tensors"):
        FrechetDistance("inception")
    with pytest.raises(
        ValueError, match=r"squeezenet1_1.pth cannot be read: it is damaged or holds more than ten"
    ):
        SqueezeNetDistance(tmp_path / "squeezenet")
    assert not mark.exists()


def test_the_doors_forbid_pickled_code_to_every_library(door, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert door("--help") == 0
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.parametrize("save", [save_autoencoder, save_latent_diffusion, save_colorizer])
def test_exports_hold_safetensors_alone(save: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = export(ExportOptions(run=str(save(tmp_path)), output=str(tmp_path / "out")))
    weights = [p for p in folder.rglob("*") if p.is_file() and b"\0" in p.read_bytes()[:4096]]
    assert weights
    assert {p.suffix for p in weights} == {".safetensors"}
