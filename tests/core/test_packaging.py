"""What is built, and from where it can be used."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fencer
from fencer.embedded import Server

PROJECT = Path(fencer.__file__).parents[1]
SCRIPTS = sorted((PROJECT / "lua").glob("*.lua"))

OTHERS = {
    "fencer/drill/clock_shim.c",
    "fencer/drill/report.css",
    "fencer/lua/README.md",
    "fencer/py.typed",
}
"""What is in the package beside modules and scripts."""

USE = """
import sys, fencer
from fencer import _scripts
with fencer.connect(sys.argv[1], namespace=sys.argv[2]) as client:
    with client.acquire("orders", wait=1, keep_alive=True) as lease:
        lease.renew()
    print(fencer.__file__)
    print(_scripts.load("acquire").sha)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and with the wheel that was built from it."""
    if not (PROJECT / "pyproject.toml").is_file():
        pytest.skip("the tests run on an installed package: there is nothing to build")
    folder = tmp_path_factory.mktemp("built")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, PROJECT],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def inside(wheel: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(wheel) as archive:
        yield archive


def use(place: Path, server: Server, tmp_path: Path) -> tuple[str, str]:
    """Import the package from a place and use it; where it was found, and one script's SHA."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", USE, server.unix_url, place.name],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    where, sha = done.stdout.split()
    return where, sha


def test_the_wheel_has_the_scripts(inside: zipfile.ZipFile) -> None:
    """An installed package would have no scripts, or those of another version."""
    assert SCRIPTS
    for script in SCRIPTS:
        assert inside.read(f"fencer/lua/{script.name}") == script.read_bytes()
    packaged = {name for name in inside.namelist() if name.endswith(".lua")}
    assert packaged == {f"fencer/lua/{script.name}" for script in SCRIPTS}


def test_the_sdist_has_the_scripts(built: Path) -> None:
    """A wheel that a packager builds from the sdist would have no scripts."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {Path(name).name for name in archive.getnames() if "/lua/" in name}
    assert {script.name for script in SCRIPTS} <= packed


def test_the_wheel_has_what_it_needs_and_no_more(inside: zipfile.ZipFile) -> None:
    """Type checkers would see no types; or our tests would be installed beside the user's own."""
    names = {name for name in inside.namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(PROJECT)) for path in (PROJECT / "fencer").rglob("*.py")}
    scripts = {f"fencer/lua/{script.name}" for script in SCRIPTS}
    assert names == modules | scripts | OTHERS
    assert not [name for name in names if "tests" in name.split("/") or "test_" in name]


def test_works_from_a_zip(wheel: Path, shared_server: Server, tmp_path: Path) -> None:
    """The scripts would be looked for in a folder that is a file."""
    where, sha = use(wheel, shared_server, tmp_path)
    assert where.startswith(str(wheel))
    assert sha == fencer._scripts.load("acquire").sha


def test_works_from_an_unpacked_wheel(
    inside: zipfile.ZipFile, shared_server: Server, tmp_path: Path
) -> None:
    """What is installed would not run, though the checkout does."""
    inside.extractall(tmp_path / "site")
    where, sha = use(tmp_path / "site", shared_server, tmp_path)
    assert where.startswith(str(tmp_path))
    assert sha == fencer._scripts.load("acquire").sha


def test_works_from_a_bare_checkout(shared_server: Server, tmp_path: Path) -> None:
    """Who clones it would have to install it first."""
    for folder in ("fencer", "lua"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / folder, tmp_path / "checkout" / folder, ignore=ignored)
    where, sha = use(tmp_path / "checkout", shared_server, tmp_path)
    assert where.startswith(str(tmp_path))
    assert sha == fencer._scripts.load("acquire").sha


def public() -> list[Any]:
    """What ``__all__`` names, and the public methods of its classes."""
    found = [pytest.param(getattr(fencer, name), id=name) for name in fencer.__all__]
    for name in fencer.__all__:
        kind = getattr(fencer, name)
        if inspect.isclass(kind):
            for base in kind.__mro__:
                if not base.__module__.startswith("fencer"):
                    continue
                found += [
                    pytest.param(member, id=f"{name}.{attribute}")
                    for attribute, member in vars(base).items()
                    if not attribute.startswith("_")
                    and (inspect.isroutine(member) or isinstance(member, property))
                ]
    return found


@pytest.mark.parametrize("thing", public())
def test_public_names_are_documented(thing: object) -> None:
    """help() would show nothing."""
    if isinstance(thing, classmethod | staticmethod):
        thing = thing.__func__
    doc = thing.__doc__
    assert doc
    assert doc.strip()[0].isupper() or doc.strip().startswith(("`", '"'))


def test_all_is_what_there_is() -> None:
    """A public name would be missing from ``__all__``, or stand there twice."""
    assert len(fencer.__all__) == len(set(fencer.__all__))
    names = {
        name
        for name, thing in vars(fencer).items()
        if not name.startswith("_") and not isinstance(thing, ModuleType)
    }
    assert names <= set(fencer.__all__)
    assert all(hasattr(fencer, name) for name in fencer.__all__)
