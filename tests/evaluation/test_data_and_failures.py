"""evaluate(): each metric against a slow literal transcription, what peers got wrong, what comes in, what comes out."""

import json

import pytest
import torch
from torch import nn

import whence
from whence import errors, metrics
from whence.core.fingerprints import fingerprint
from whence.models.digits import digit_samples, digits

FLAT = metrics.RegionFlipping(metrics.Removal(imputer=0.0))


SIDE = 6


def cnn(seed=0, channels=2):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * SIDE * SIDE, 5)
    ).eval()  # fmt: skip


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        return torch.rand(2, SIDE, SIDE, generator=generator), i % 5


def test_all_kinds_of_data_give_the_same():
    model, pairs = cnn(), Pairs()
    x, y = torch.stack([pairs[i][0] for i in range(10)]), torch.tensor([pairs[i][1] for i in range(10)])
    loader = torch.utils.data.DataLoader(pairs, batch_size=4)
    expected = whence.evaluate(model, (x, y), ["lrp"], ["srg"], target="label", progress=False).values["lrp"]["srg"]
    for data in (pairs, loader, (x, y.tolist()), (x, y.numpy())):
        found = whence.evaluate(model, data, ["lrp"], ["srg"], target="label", progress=False).values["lrp"]["srg"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(errors.TargetError, match="needs labels"):
        whence.evaluate(model, x, ["lrp"], ["srg"], target="label")
    with pytest.raises(errors.TargetError, match="9 labels for 10 samples"):
        whence.evaluate(model, (x, y[:9]), ["lrp"], ["srg"])
    with pytest.raises(errors.InputError, match="empty"):
        whence.evaluate(model, [], ["lrp"], ["srg"])


def test_a_sample_that_fails_is_named_and_the_rest_counted():
    model, x = cnn(), torch.rand(8, 2, SIDE, SIDE)

    def theirs(model, x, target):
        if any(torch.equal(row, x_bad) for row in x):
            raise ValueError("no explanation today")
        return x

    x_bad = x[3].clone()
    found = whence.evaluate(model, x, {"theirs": theirs, "lrp": "lrp"}, ["srg"], progress=False)
    assert [f.sample for f in found.failures] == [3]
    rows = {row["method"]: row for row in found.table}
    assert (rows["theirs"]["n"], rows["theirs"]["failed"], rows["lrp"]["n"]) == (7, 1, 8)
    assert "theirs failed on 1: 3 (no explanation today)" in repr(found)
    with pytest.raises(ValueError, match="always"):
        whence.evaluate(model, x, {"m": lambda *given: (_ for _ in ()).throw(ValueError("always"))}, ["srg"])
    with pytest.raises(errors.InputError, match="returned relevance of shape"):
        whence.evaluate(model, x, {"m": lambda m, x, t: x[:, :, :2]}, ["srg"])


def test_wrong_names_say_what_is_meant():
    model, x = cnn(), torch.rand(2, 2, SIDE, SIDE)
    for settings, message in [
        ({"methods": ["lpr"]}, "did you mean 'lrp'"),
        ({"metrics": ["sgr"]}, "did you mean 'srg'"),
        ({"metrics": ["sparseness"], "regions": 4}, "no metric given by name removes regions, so regions would"),
        ({"metrics": ["srg", "srg"]}, "two metrics are named"),
        ({"methods": []}, "no methods"),
        ({"methods": [lambda m, x, t: x]}, "has no name"),
        ({"metrics": [metrics.SRG]}, "is not a metric"),
        ({"imputer": "mena"}, "did you mean 'mean'"),
        ({"score": "logits"}, "choose from logit"),
    ]:
        with pytest.raises(errors.RuleError, match=message):
            whence.evaluate(model, x, **({"methods": ["lrp"], "metrics": ["srg"]} | settings), progress=False)
    with pytest.raises(errors.ModelError, match="must be a torch"):
        whence.evaluate(lambda x: model(x), x, ["lrp"], ["mprt"])


def test_results_are_written(tmp_path):
    x, y = digit_samples()
    found = whence.evaluate(digits(), (x[:6], y[:6]), ["lrp", "random"], ["srg", "sparseness"], progress=False)
    for suffix in (".png", ".csv", ".json", ".html"):
        assert found.save(tmp_path / f"e{suffix}").stat().st_size > 100
    read = json.loads((tmp_path / "e.json").read_text())
    assert read["table"][0]["method"] == "lrp"
    assert len(read["values"]["random"]["srg"]) == 6
    assert (tmp_path / "e.csv").read_text().startswith("method,metric,mean,low,high,n,failed,better\nlrp,srg,")
    page = (tmp_path / "e.html").read_text()
    assert "<td>lrp</td>" in page
    assert "http" not in page.replace("http-equiv", "")
    assert set(found.curves) == {"lrp", "random"}


def test_a_run_goes_on_where_it_was(tmp_path):
    model, x, log = cnn(), torch.rand(6, 2, SIDE, SIDE), tmp_path / "log"
    tmp_path = tmp_path / "kept"
    log.touch()

    def theirs(model, x, target):
        log.write_text(log.read_text() + f"{len(x)} ")
        return x

    first = whence.evaluate(model, x, {"m": theirs}, ["srg"], batch_size=2, cache_dir=tmp_path, progress=False)
    again = whence.evaluate(model, x, {"m": theirs}, ["srg"], batch_size=2, cache_dir=tmp_path, progress=False)
    assert log.read_text().split() == ["2"] * 3
    assert torch.equal(first.values["m"]["srg"], again.values["m"]["srg"])
    whence.evaluate(cnn(1), x, {"m": theirs}, ["srg"], batch_size=2, cache_dir=tmp_path, progress=False)
    assert len(log.read_text().split()) == 6  # other weights are another run
    whence.evaluate(model, x, {"m": theirs}, [metrics.SRG(FLAT)], batch_size=2, cache_dir=tmp_path, progress=False)
    assert len(log.read_text().split()) == 9


class Broken(Pairs):
    """The third row cannot be read, the seventh is of another size."""

    def __getitem__(self, i):
        if i == 2:
            raise OSError("no picture")
        x, y = super().__getitem__(i)
        return (x[:, :4], y) if i == 6 else (x, y)


def test_rows_that_cannot_be_read_are_named():
    found = whence.evaluate(cnn(), Broken(), ["lrp", "random"], ["srg"], batch_size=4, progress=False)
    whole = whence.evaluate(cnn(), Pairs(), ["lrp", "random"], ["srg"], batch_size=4, progress=False)
    assert [(f.method, f.sample) for f in found.failures] == [("lrp", 2), ("random", 2), ("lrp", 6), ("random", 6)]
    good = torch.tensor([0, 1, 3, 4, 5, 7, 8, 9])
    for method in ("lrp", "random"):
        assert found.values[method]["srg"].isnan().nonzero().flatten().tolist() == [2, 6]
        torch.testing.assert_close(found.values[method]["srg"][good], whole.values[method]["srg"][good], rtol=1e-4, atol=1e-5)
    assert "every method failed on 1: 2 (OSError: no picture); every method failed on 1: 6 (sample of shape (2, 4, 6)" in repr(
        found
    )
    with pytest.raises(errors.InputError, match="sample 2 cannot be read"):
        whence.tune(cnn(), Broken())
    with pytest.raises(errors.InputError, match="none of 2 samples can be read"):
        whence.evaluate(cnn(), [object(), object()], ["lrp"], ["srg"])


def test_rows_are_made_inputs_of_by_read(tmp_path):
    rows = [{"picture": x.numpy(), "kind": y} for x, y in (Pairs()[i] for i in range(10))]
    expected = whence.evaluate(cnn(), Pairs(), ["lrp"], ["srg"], target="label", progress=False).values["lrp"]["srg"]
    found = whence.evaluate(
        cnn(),
        rows,
        ["lrp"],
        ["srg"],
        target="label",
        read=lambda r: (torch.from_numpy(r["picture"]), r["kind"]),
        progress=False,
    )
    torch.testing.assert_close(found.values["lrp"]["srg"], expected)
    with pytest.raises(errors.InputError, match="applies to the rows of a dataset; got tensors or batches"):
        whence.evaluate(cnn(), torch.rand(4, 2, SIDE, SIDE), ["lrp"], ["srg"], read=len)


def test_parts_of_array_jobs_are_gathered(tmp_path):
    expected = whence.evaluate(cnn(), Pairs(), ["lrp", "random"], ["srg"], batch_size=3, progress=False).values
    for i in range(3):
        part = whence.evaluate(
            cnn(), Pairs(), ["lrp", "random"], ["srg"], batch_size=3, cache_dir=tmp_path, shard=f"{i}/3", progress=False
        )
        assert int(part.values["lrp"]["srg"].isfinite().sum()) == (4 if i == 0 else 3)
        assert not part.failures
    made = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(made) == 8  # four batches, two methods
    found = whence.evaluate(cnn(), Pairs(), ["lrp", "random"], ["srg"], batch_size=3, cache_dir=tmp_path, progress=False).values
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == made
    assert all(torch.equal(found[way]["srg"], expected[way]["srg"]) for way in ("lrp", "random"))
    with pytest.raises(errors.RuleError, match="give both"):
        whence.evaluate(cnn(), Pairs(), ["lrp"], ["srg"], shard="0/3")
    with pytest.raises(errors.RuleError, match="choose from local, ray"):
        whence.evaluate(cnn(), Pairs(), ["lrp"], ["srg"], engine="rays")
    with pytest.raises(errors.RuleError, match="give engine='ray' too"):
        whence.evaluate(cnn(), Pairs(), ["lrp"], ["srg"], address="127.0.0.1:9")


def test_loaders_count_what_they_give():
    whole = whence.evaluate(cnn(), Pairs(), ["lrp"], ["srg"], progress=False).values["lrp"]["srg"]
    for loader, count in (
        (torch.utils.data.DataLoader(Pairs(), 4, drop_last=True), 8),
        (torch.utils.data.DataLoader(Pairs(), 4, sampler=range(2)), 2),
        (torch.utils.data.DataLoader(Pairs(), batch_sampler=[[0, 1, 2], [3]]), 4),
    ):
        found = whence.evaluate(cnn(), loader, ["lrp"], ["srg"], progress=False).values["lrp"]["srg"]
        torch.testing.assert_close(found, whole[:count], rtol=1e-4, atol=1e-5)
    shuffled = torch.utils.data.DataLoader(Pairs(), 4, shuffle=True)
    with pytest.raises(errors.InputError, match="shuffles"):
        whence.evaluate(cnn(), shuffled, ["lrp"], ["srg"], target=torch.zeros(10).long())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_finds_the_same():
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    rows = ["no picture" if i == 2 else Pairs()[i] for i in range(10)]
    expected = whence.evaluate(cnn(), rows, ["lrp", "random"], ["srg"], batch_size=3, progress=False)
    try:
        found = whence.evaluate(cnn(), rows, ["lrp", "random"], ["srg"], batch_size=3, engine="ray", progress=False)
    finally:
        ray.shutdown()
    for way in ("lrp", "random"):
        assert torch.equal(found.values[way]["srg"].nan_to_num(7), expected.values[way]["srg"].nan_to_num(7))
    assert found.failures == expected.failures
    assert {f.sample for f in found.failures} == {2}


def test_fingerprints_tell_things_apart():
    same = [whence.LRP(whence.presets.epsilon_plus()), whence.LRP(whence.presets.epsilon_plus())]
    assert fingerprint(same[0]) == fingerprint(same[1])
    others = [
        whence.LRP(),
        same[0],
        torch.ones(2),
        torch.ones(2).double(),
        torch.zeros(2),
        "a",
        b"a",
        1,
        1.0,
        None,
        cnn(),
        cnn(1),
    ]
    assert len({fingerprint(thing) for thing in others}) == len(others)


def test_nothing_stays_on_the_model():
    model, x = cnn(), torch.rand(2, 2, SIDE, SIDE)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    masks = torch.ones(2, SIDE, SIDE)
    whence.evaluate(model, x, ["lrp", "random"], list(metrics.METRICS), masks=masks, progress=False)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("in_place", [True, False])
def test_a_function_that_changes_the_model_ends_the_evaluation(in_place):
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval(), torch.rand(6, 4)

    def changes(model, inputs, target):
        if in_place:
            model[0].weight.data.mul_(2)
        else:
            model[0].register_forward_hook(lambda module, args, out: out)
        return inputs

    for call in (whence.evaluate, whence.compare):
        with pytest.raises(errors.RuleError, match="'changes' changed the model"):
            call(model, x, {"changes": changes, "lrp": "lrp"})
