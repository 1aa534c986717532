"""The package as a user gets it: sdist, wheel, an installation without a compiler, with CUDA asked for in vain."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SITE_PACKAGES = str(Path(pytest.__file__).resolve().parents[1])
HAS_COMPILER = any(map(shutil.which, [os.environ.get("CXX", "c++"), "g++", "clang++"]))

#: These build for the machine at hand from installed packages: nothing is fetched.
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree with its setup.py")


def run(*command: str | Path, cwd: Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command with UOTLIB_CUDA=0 unless said otherwise, its two outputs together."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env={**os.environ, "UOTLIB_CUDA": "0", **environment})
    assert not check or done.returncode == 0, done.stdout
    return done


def pip_wheel(source: Path, target: Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps", "--no-index",
               "--wheel-dir", target, source, cwd=target, check=check, **environment)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The source distribution, made from a copy: the working tree is another test's, and it may be building."""
    place = tmp_path_factory.mktemp("sdist")
    tree = place / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "out", "*.egg-info", "*.so", "__pycache__", ".*_cache", ".hypothesis"))
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", place, tree, cwd=place)
    (archive,) = place.glob("uotlib-*.tar.gz")
    return archive


@pytest.fixture
def source(sdist, tmp_path) -> Path:
    """The unpacked source distribution."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (tree,) = (tmp_path / "source").iterdir()
    return tree


def install(wheel: Path, place: Path) -> Path:
    """A fresh environment with the wheel alone, which sees this environment's torch behind it; its python."""
    builder = venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt")
    builder.create(place)
    (site,) = place.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # Appended to the path, and .pth files there are not read: an editable uotlib stays out of sight.
    (site / "outer.pth").write_text(SITE_PACKAGES + "\n")
    return place / "bin" / "python"


def test_sdist_has_all_it_needs_to_build(source):
    expected = [*(path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*") if path.is_file()),
                Path("uotlib/py.typed"), Path("setup.py"), Path("pyproject.toml"), Path("constraints.txt")]
    assert not [str(path) for path in expected if not (source / path).is_file()]
    assert not list(source.rglob("*.so"))


@pytest.mark.skipif(not HAS_COMPILER, reason="needs a C++ compiler")
def test_wheel_from_sdist_solves(source, tmp_path):
    pip_wheel(source, tmp_path)
    (wheel,) = tmp_path.glob("uotlib-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "uotlib/py.typed" in names
    assert any(name.startswith("uotlib/_C.") for name in names)
    assert all(name.startswith("uotlib") for name in names), "nothing but the package is installed"
    python = install(wheel, tmp_path / "venv")
    program = (
        "import torch, uotlib\n"
        "from uotlib.info import report\n"
        "solution = uotlib.unbalanced_sinkhorn(torch.rand(40, 30), reg=0.1, reg_m=1.0, backend='native')\n"
        "assert solution.plan.isfinite().all() and solution.plan.sum() > 0\n"
        "print(uotlib.__file__); print(report())\n"
    )
    shown = run(python, "-c", program, cwd=tmp_path).stdout
    assert str(tmp_path / "venv") in shown.splitlines()[0]
    assert "compiled by" in shown
    assert "built without CUDA" in shown


def test_installs_without_a_compiler_and_says_so(source, tmp_path):
    shown = pip_wheel(source, tmp_path, CXX="/nonexistent/c++").stdout
    assert "no C++ compiler was found (/nonexistent/c++)" in shown
    (wheel,) = tmp_path.glob("uotlib-*.whl")
    python = install(wheel, tmp_path / "venv")
    shown = run(python, "-m", "uotlib.info", cwd=tmp_path).stdout
    assert "the compiled extension uotlib._C is not installed" in shown
    program = (
        "import torch, uotlib\n"
        "try:\n"
        "    uotlib.unbalanced_sinkhorn(torch.rand(4, 3), reg=0.1, reg_m=1.0, backend='native')\n"
        "except uotlib.BackendUnavailable as error: print(error)\n"
    )
    assert "uotlib._C is not installed" in run(python, "-c", program, cwd=tmp_path).stdout


def test_a_broken_extension_shows_its_own_error(source, tmp_path):
    (source / "uotlib" / "_C.abi3.so").write_bytes(b"not a library")
    program = "from uotlib._extension import missing; print(missing)"
    shown = run(sys.executable, "-c", program, cwd=source, PYTHONPATH=str(source)).stdout
    assert "uotlib._C failed to import" in shown
    assert "_C.abi3.so" in shown


@pytest.mark.skipif(not HAS_COMPILER, reason="needs a C++ compiler")
@pytest.mark.parametrize(("wish", "sentence"), [
    ("1", "UOTLIB_CUDA=1 asks for the CUDA kernels, but no nvcc is on PATH"),
    ("yes", "UOTLIB_CUDA must be auto, 0 or 1, got 'yes'"),
])
def test_cuda_wish_that_cannot_be_met_fails(source, tmp_path, wish, sentence):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("c++", "g++", "clang++", "ninja"):
        if found := shutil.which(tool):
            (tools / tool).symlink_to(found)
    done = pip_wheel(source, tmp_path, check=False, UOTLIB_CUDA=wish, PATH=str(tools))
    assert done.returncode != 0
    assert sentence in done.stdout
    assert not list(tmp_path.glob("*.whl"))


@pytest.mark.skipif(not HAS_COMPILER, reason="needs a C++ compiler")
def test_code_that_does_not_compile_fails_the_installation(source, tmp_path):
    """An optional extension is one without a compiler, not one with an error in it."""
    (source / "csrc" / "cpu" / "pool.cpp").write_text("#error broken on purpose\n")
    for kernel in ("kernels.cpp", "operations.cpp"):
        (source / "csrc" / "cpu" / kernel).write_text("")
    done = pip_wheel(source, tmp_path, check=False)
    assert done.returncode != 0
    assert "broken on purpose" in done.stdout
