"""The blocks of the docs and the README run as written, one page after the other, in an empty folder."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


PAGES = [*sorted((ROOT / "docs").glob("howto/*.md")), ROOT / "docs" / "index.md", ROOT / "README.md"]


WRITTEN = {ROOT / "docs" / "reference" / name for name in ("rules.md", "functions.md")}  # from the code, as the docs are built


NOTEBOOKS = sorted(page for page in (ROOT / "docs" / "tutorials").glob("*.md") if page.name != "index.md")


SUPPORT = str(Path(__file__).parents[1])
FIRST = f"import sys; sys.path.insert(0, {SUPPORT!r}); import support.torchvision_operators; sys.path.pop(0)\n"


PEERS = {"coming_from.md": ("captum", "zennit", "shap", "quantus", "lucent", "lxt")}


def run(blocks, folder):
    ran = subprocess.run([sys.executable, "-c", FIRST + "\n".join(blocks)], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def name(page):
    return page.stem


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_runs_as_written(page, tmp_path):
    for peer in PEERS.get(page.name, ()):
        pytest.importorskip(peer)
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    if blocks:
        run(blocks, tmp_path)


def test_the_first_commands_of_the_readme_run_as_pasted(tmp_path):
    text = (ROOT / "README.md").read_text()
    *_, network = re.findall(r"^```python\n((?:(?!```).)*?nets.py\"\).write_text.*?)^```", text, re.DOTALL | re.MULTILINE)
    run([network], tmp_path)
    (line,) = re.findall(r"^whence explain photo.png.*$", text, re.MULTILINE)
    ran = subprocess.run(
        [sys.executable, "-m", *shlex.split(line, comments=True)], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "heat.png").stat().st_size > 10_000


@pytest.mark.parametrize("page", NOTEBOOKS, ids=name)
def test_a_notebook_runs_as_written(page, tmp_path):
    blocks = re.findall(r"^```{code-cell} python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    run(["import matplotlib; matplotlib.use('agg')", *blocks], tmp_path)


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        if "_build" in page.parts:
            continue
        words = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", words):
            place = (page.parent / target).resolve()
            assert "://" in target or place.exists() or place in WRITTEN, f"{page.relative_to(ROOT)}: {target}"
