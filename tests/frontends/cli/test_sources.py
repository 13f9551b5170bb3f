"""`whence sources`, and `whence explain` of texts, on a language model with random weights in a folder."""

import json

import pytest
import torch

from support.command_line import command

transformers = pytest.importorskip("transformers")
WORDS = "<s> </s> . the has Lily Tom Mia ball kite car who".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers

    place = tmp_path_factory.mktemp("language")
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="</s>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>").save_pretrained(place)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=len(WORDS), initializer_range=1.0, eos_token_id=1, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(place)
    (place / "documents").mkdir()
    for name in ("Lily has the ball .", "Tom has the kite .", "Mia has the car ."):
        (place / "documents" / f"{name.split()[0]}.txt").write_text(name)
    return place


def test_documents_in_a_folder_and_a_page(folder, tmp_path):
    asked = ["sources", str(folder / "documents"), "--model", f"hf:{folder}", "--query", "Tom has the"]
    ran = command(*asked, "--response", "kite . ball .", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "kite . ball ." in ran.stdout
    assert "Tom.txt" in ran.stdout
    page = (tmp_path / "sources.html").read_text()
    assert page.count('data-statement="') == 3
    told = command(*asked, "--response", "kite", "--json", "--out", "sources.csv", cwd=tmp_path)
    found = json.loads(told.stdout)
    assert [row["rank"] for row in found["sources"]] == [0, 1, 2]
    assert {row["source"] for row in found["sources"]} == {"Lily.txt", "Tom.txt", "Mia.txt"}
    assert (tmp_path / "sources.csv").read_text().startswith("statement,text,rank,source")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["nothing.txt", "--model", "hf:x"], "no file or folder 'nothing.txt'"),
        (["--model", "hf:x"], "nothing to read"),
        (["."], "no .txt or .md files"),
    ],
)
def test_bad_options(asked, message, tmp_path):
    ran = command("sources", *asked, cwd=tmp_path)
    assert ran.returncode == 2
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
def test_explain_reads_text_files_and_standard_input(folder, tmp_path):
    text = "Tom has the kite . Lily has the"
    (tmp_path / "text.txt").write_text(text)
    reports = []
    for given, stdin in ((text, None), ("text.txt", None), ("-", text)):
        ran = command("explain", given, "--model", f"hf:{folder}", "--json", "--out", "why.html", cwd=tmp_path, stdin=stdin)
        assert ran.returncode == 0, ran.stderr
        reports.append({k: v for k, v in json.loads(ran.stdout).items() if k != "input"})
    assert reports[0] == reports[1] == reports[2]
    missing = command("explain", "txt.txt", "--model", f"hf:{folder}", cwd=tmp_path)
    assert missing.returncode == 2
    assert "did you mean 'text.txt'" in missing.stderr
