"""`whence evaluate`, `compare`, `explain-dataset` and `audit` as a user types them."""

import json

import numpy as np
import pytest
from PIL import Image

from whence.models.digits import digit_samples
from whence_command import main


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def typed(*words):
        monkeypatch.setattr("sys.argv", ["whence", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return typed


@pytest.fixture
def photos(tmp_path):
    """Threes and sevens in folders named by class, one file broken."""
    x, y = digit_samples()
    for i, label in enumerate(y.tolist()):
        if label in (3, 7):
            (tmp_path / "photos" / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray((x[i, 0].numpy() * 255).astype("uint8")).save(tmp_path / "photos" / str(label) / f"{i}.png")
    (tmp_path / "photos" / "3" / "broken.png").write_text("no picture")
    return "photos"


def test_evaluate_a_folder(run, photos, tmp_path):
    code, out, err = run("evaluate", "--data", photos, "--methods", "lrp,random", "--metrics", "srg", "--target", "label",
                         "--json", "--out", "r.html")  # fmt: skip
    assert code == 0
    assert "broken.png" in err
    table = json.loads(out)["table"]
    assert {row["method"]: row["n"] for row in table} == {"lrp": 10, "random": 10}
    assert (tmp_path / "r.html").is_file()
    assert not [path for path in tmp_path.iterdir() if "unfinished" in path.name]


def test_explain_a_folder_and_look_for_a_clever_hans(run, photos, tmp_path):
    code, out, _ = run("explain-dataset", "store", "--data", photos, "--target", "label", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["samples"] == 10
    assert "broken.png" in found["failures"][0]["sample"]
    code, _, err = run("explain-dataset", "store", "--data", photos)
    assert code == 2
    assert "target (label there, predicted now)" in err
    code, _, err = run("audit", "store")
    assert code == 2
    assert "12 samples or more" in err
    x, y = digit_samples()
    many = np.clip(np.tile(x.numpy()[:, 0], (6, 1, 1)) + 0.1 * np.random.default_rng(0).random((300, 28, 28)), 0, 1)
    np.savez("many.npz", images=(many * 255).astype("uint8"), labels=np.tile(y.numpy(), 6))
    assert run("explain-dataset", "more", "--data", "many.npz")[0] == 0
    code, out, _ = run("audit", "more", "--out", "a.json", "--clusters", "2")
    assert code == 0
    assert "clusters of 300 explanations" in out
    assert len(json.loads((tmp_path / "a.json").read_text())["clusters"]) == 20


def test_compare(run, tmp_path):
    code, out, _ = run("compare", "--methods", "lrp,epsilon_plus,random", "--json")
    assert code == 0
    assert [row["method"] for row in json.loads(out)["table"]] == ["lrp", "epsilon_plus", "random"]
    assert (tmp_path / "compared.png").stat().st_size > 5000
    assert run("compare")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("evaluate", "--methods", "lpr"), "unknown method 'lpr'; did you mean 'lrp'"),
        (("evaluate", "--metrics", "sgr"), "unknown metric 'sgr'; did you mean 'srg'"),
        (("evaluate", "--data", "nowhere"), "nowhere does not exist"),
        (("evaluate", "--imputer", "much"), "expected a number or one of"),
        (("evaluate", "--limit", "0"), "expected at least 1"),
        (("evaluate", "--out", "report.doc"), "must be one of .png"),
        (("compare", "--methods", "gxi"), "unknown method 'gxi'"),
        (("explain-dataset", "s", "--target", "all"), "choose 'predicted'"),
        (("explain-dataset", "s", "--engine", "spark"), "choose from local, ray"),
        (("explain-dataset", "s", "--shard", "4"), "give 'i/n'"),
        (("audit", "nowhere"), "folder nowhere does not exist"),
    ],
)
def test_mistakes_are_told_in_a_line(run, words, said):
    code, _, err = run(*words)
    assert code == 2
    assert said in err
    assert "Traceback" not in err


def test_evaluate_as_it_comes(run, tmp_path):
    code, out, _ = run("evaluate", "--limit", "6")
    assert code == 0
    assert "6 samples, means with 95 % intervals" in out
    assert (tmp_path / "report.html").is_file()


def test_export_the_bundled_network(run, tmp_path):
    code, out, err = run("export", "--json", "--rules", "epsilon_plus")
    assert code == 0, err
    about = json.loads(out)
    assert about["takes"] == {"x": ["batch", 1, 28, 28], "target": ["batch"]}
    assert list(about["gives"]) == ["output", "explained", "relevance", "relevance_sum", "absorbed", "holds"]
    assert (tmp_path / about["file"]).is_file()
    code, out, _ = run("export", "--target", "3", "--method", "gradient_times_input", "--out", "fixed.pt2")
    assert code == 0
    assert "['batch', 1, 28, 28]" in out
    for words, message in [
        (("--method", "shapley"), "cannot be captured as one graph"),
        (("--method", "lpr"), "unknown method 'lpr'"),
        (("--out", "x.bin"), "written to .pt2 or .onnx"),
        (("--compiled", "--out", "x.onnx"), "compiled program is written to .pt2"),
        (("--out", "nowhere/x.pt2"), "no folder nowhere"),
        (("--model", "torchvision:resnet18"), "nothing to export: pass an image"),
    ]:
        code, _, err = run("export", *words)
        assert code == 2
        assert message in err


def test_first_errors_with_a_network_of_ones_own(run, photos, tmp_path):
    (tmp_path / "nets.py").write_text(
        "import torch\n\ndef make():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 28 * 28, 4))\n"
    )
    Image.effect_noise((40, 30), 80).convert("RGB").save(tmp_path / "photo.png")
    code, _, err = run("explain", "photo.png", "--model", "nets.py:make")
    assert code == 2
    assert "cannot run on an input of shape (1, 3, 30, 40)" in err
    code, out, err = run("explain", "photo.png", "--model", "nets.py:make", "--size", 28)
    assert code == 0
    assert "using the weights that nets.py:make sets" in err
    assert "does not state its image normalisation" in err
    code, _, err = run("explain", "photo.png", "--model", "nets.py:make", "--size", 28, "--target", "robin")
    assert (code, "has no class names" in err) == (2, True)
    code, _, err = run("explain", "--target", "robin")
    assert (code, "digits has no class 'robin'; choose from 0, 1" in err) == (2, True)
    code, _, err = run("explain", "photo.png", "--model", "net.pt")
    assert (code, "net.pt holds weights, not the network" in err) == (2, True)
    code, _, err = run("explain", "photo.png")
    assert code == 0
    assert "digits expects digits, white on black, 28 × 28" in err
    code, _, err = run("models", "nets.py:make")
    assert code == 2
    assert "whence models --layers nets.py:make" in err
    code, out, _ = run("models", "--layers", "nets.py:make", "--size", 28)
    assert code == 0
    assert "2352" in out
    code, out, _ = run("evaluate", "--model", "nets.py:make", "--size", 28, "--data", photos, "--methods", "lrp,random",
                       "--metrics", "srg", "--limit", 1)  # fmt: skip
    assert code == 0
    assert "1 sample, means" in out
