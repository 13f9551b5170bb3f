"""Build wheel and sdist, and try them where nothing of this folder is: in fresh environments, on each Python that is here.

python scripts/release_check.py                # Python 3.11 to 3.14, those of them that are found
python scripts/release_check.py --oldest       # and the oldest torch that is claimed, which fetches gigabytes
"""

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
CONSTRAINTS = ROOT / "constraints.txt"
TRY = """
import whence
from whence.models.digits import digit_samples, digits
assert "site-packages" in whence.__file__, whence.__file__
model, (x, y) = digits(), digit_samples()
e = whence.explain(model, x)
assert float(e.conservation.error.max()) < 1e-4
assert (model(x).argmax(1) == y).float().mean() > 0.9
e[:2].save("heat.html")
whence.prototype(model, [3], prior=whence.priors.L2(0.3), shape=(1, 28, 28), n_steps=8, progress=False)
print("whence", whence.__version__, "explains")
"""


def run(*command: object, folder: Path) -> None:
    subprocess.run(list(map(str, command)), cwd=folder, check=True)


def built(folder: Path) -> tuple[Path, Path]:
    """The wheel and the source archive, looked into."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, folder=folder)
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"-{version}" in wheel.name
    assert f"## {version} " in (ROOT / "CHANGELOG.md").read_text(), f"the changelog says nothing of {version}"
    names = zipfile.ZipFile(wheel).namelist()
    for part in (
        "web/templates/index.html",
        "web/static/main.js",
        "plotting/templates/look.css",
        "whence/__init__.pyi",
        "py.typed",
        "licenses/LICENSE",
    ):
        assert any(name.endswith(part) for name in names), f"{part} is not in the wheel"
    assert not [name for name in names if name.startswith(("tests", "docs", "benchmarks"))]
    with tarfile.open(archive) as inside:
        assert any(name.endswith("README.md") for name in inside.getnames())
    return wheel, archive


def found(version: str) -> str | None:
    """A Python of that version which runs: on the path, or one of pyenv's."""
    candidates = [shutil.which(f"python{version}"), *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
    works = (p for p in candidates if p and not subprocess.run([p, "-c", "import venv"], capture_output=True).returncode)
    return next(works, None)


def try_in_a_fresh_environment(python: str, package: Path, folder: Path, torch: str = "") -> None:
    run(python, "-m", "venv", folder / "venv", folder=folder)
    own = folder / "venv" / "bin"
    bound = ["--constraint", CONSTRAINTS] if not torch else [torch]
    run(own / "python", "-m", "pip", "install", "--quiet", package, *bound, folder=folder)
    run(own / "python", "-c", TRY, folder=folder)
    run(own / "whence", "explain", "--out", "heat.png", folder=folder)
    assert (folder / "heat.png").stat().st_size > 10_000


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        made = Path(place) / "built"
        made.mkdir()
        wheel, archive = built(made)
        for version in PYTHONS:
            python = found(version)
            if python is None:
                print(f"Python {version}: not here, not tried")
                continue
            for package in (wheel, archive) if version == PYTHONS[0] else (wheel,):
                with tempfile.TemporaryDirectory() as folder:
                    try_in_a_fresh_environment(python, package, Path(folder))
                print(f"Python {version}, {package.suffix}: works")
        if "--oldest" in sys.argv:
            (least,) = re.findall(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
            with tempfile.TemporaryDirectory() as folder:
                try_in_a_fresh_environment(sys.executable, wheel, Path(folder), f"torch=={least}.0")
            print(f"torch {least}.0: works")


if __name__ == "__main__":
    main()
