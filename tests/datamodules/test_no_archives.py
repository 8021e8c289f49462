"""Nothing here unpacks archives or downloads files, so neither hostile members nor missing checksums can occur.

What the tar and zip modules do with `../`, absolute paths, links and bombs differs between Python versions (tarfile's
default filter leaves the folder on 3.11). Photos are read from folders; weights come through the hub's own client,
which checks the size and hash of what it downloads. Code that needs an archive or a download brings a member check, a
size limit and a checksum with it, and changes this test.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests")
FILES = sorted([*ROOT.glob("*.py"), *(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))])
# urllib.parse splits addresses and loads nothing.
FORBIDDEN_MODULES = {
    "tarfile", "zipfile", "zipimport", "gzip", "bz2", "lzma", "py7zr", "rarfile",
    "urllib.request", "urllib3", "requests", "httpx", "aiohttp", "http", "ftplib", "wget", "pooch", "gdown", "fsspec",
}  # fmt: skip
FORBIDDEN_CALLS = {
    "unpack_archive", "extractall", "urlretrieve", "urlopen", "download_url_to_file", "load_state_dict_from_url",
    "download_and_extract_archive", "download_url", "extract_archive",
}  # fmt: skip


def uses(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, (ast.Name, ast.Attribute)):
            names = [node.id if isinstance(node, ast.Name) else node.attr]
            yield from (name for name in names if name in FORBIDDEN_CALLS)
            continue
        else:
            continue
        for name in names:
            parts = name.split(".")
            prefixes = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
            yield from prefixes & FORBIDDEN_MODULES
            yield from {parts[-1]} & FORBIDDEN_CALLS


def test_no_room_unpacks_archives_or_downloads() -> None:
    assert {"datamodules", "networks", "runs", "metrics"} <= set(ROOMS)
    found = {
        f"{file.relative_to(ROOT)}: {name}" for file in FILES for name in uses(ast.parse(file.read_text()))
    }
    assert found == set()


@pytest.mark.parametrize(
    "text",
    ["import tarfile", "from zipfile import ZipFile", "from urllib import request", "import urllib.request as r",
     "shutil.unpack_archive(a)", "from shutil import unpack_archive", "torch.hub.load_state_dict_from_url(u)"],
)  # fmt: skip
def test_the_search_finds(text: str) -> None:
    assert list(uses(ast.parse(text)))
