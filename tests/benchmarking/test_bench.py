"""bench(): the truths are true, the metrics those of the papers, and what a method or a run does wrong is told."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn

import support.torchvision_operators  # noqa: F401
import whence
from whence import errors
from whence.benchmarking import drawn_figures, graph_motifs, hand_made_networks, lexical_shortcuts, lstm_arithmetic, xai_tris
from whence.benchmarking.bench import bench
from whence.benchmarking.ground_truth_metrics import average_precision, roc_auc
from whence.benchmarking.ground_truth_task import BenchSettings
from whence.benchmarking.small_networks import train
from whence.benchmarking.suites import SUITES

SETTINGS = BenchSettings(20, 0, None)


@pytest.fixture(scope="module")
def hand_made():
    return bench("hand_made", n_samples=20, progress=False)


def scores(found, task, method):
    (own,) = [scored for scored in found.tasks if scored.task == task]
    return float(own.values[method].mean())


@pytest.mark.parametrize("name", ["weighted", "interacting", "shattered gradients", "AND", "OR", "conflicting"])
def test_truths_of_hand_made_networks_add_up_to_the_output(name):
    task = hand_made_networks.TASKS[name](SETTINGS)
    change = task.model(task.x) - task.model(torch.zeros_like(task.x))
    torch.testing.assert_close(task.truth.sum(1, keepdim=True), change, atol=1e-4, rtol=1e-4)


def test_the_truth_of_pertinent_negatives_is_the_output_itself():
    task = hand_made_networks.TASKS["pertinent negatives"](SETTINGS)
    torch.testing.assert_close(task.truth.sum(1, keepdim=True), task.model(task.x))


@pytest.mark.parametrize("name", ["shattered gradients", "AND", "OR"])
def test_shapley_values_are_the_truth_of_sums_and_of_bits(hand_made, name):
    assert scores(hand_made, name, "shapley") < 1e-6
    assert scores(hand_made, name, "random") > 0.5
    assert scores(hand_made, name, "lrp") > 0.01  # the product with a gradient is not


@pytest.mark.parametrize("name", ["weighted", "interacting"])
def test_lrp_is_exact_where_no_switch_is_on(hand_made, name):
    assert scores(hand_made, name, "lrp") < 1e-8


def test_peers_agree_with_the_same_method_of_ours(hand_made):
    for task in hand_made.tasks:
        theirs, ours = task.values["captum InputXGradient"], task.values["gradient_times_input"]
        torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=1e-4)
    assert {"zennit EpsilonPlus", "shap GradientExplainer"} <= set(hand_made.methods)
    assert {failure.method for failure in hand_made.failures} >= {"LXT AttnLRP", "edge filter"}


def test_tasks_say_what_is_level_with_the_best(hand_made):
    weighted = hand_made.tasks[0]
    assert {"lrp", "integrated_gradients", "shapley"} <= weighted.level  # differences are rounding errors
    assert "random" not in weighted.level
    assert weighted.relative("random") == 0
    assert hand_made.share_level("random") == 0
    assert "AND" in {task.task for task in hand_made.behind("lrp")}
    assert hand_made.ranking[0][1] >= hand_made.share_level("lrp")
    with pytest.raises(errors.RuleError, match="no method 'lpr'"):
        hand_made.share_level("lpr")


def test_reports_hold_all_scores(hand_made, tmp_path):
    page = hand_made.save(tmp_path / "bench.html").read_text()
    assert "hand-made networks" in page
    assert "Where the default of whence is not level" in page
    assert "LXT AttnLRP" in page
    told = json.loads(hand_made.save(tmp_path / "bench.json").read_text())
    assert len(told["table"]) == sum(len(task.values) for task in hand_made.tasks)
    assert told["settings"]["n_samples"] == 20
    assert told["settings"]["versions"]["torch"]
    assert hand_made.save(tmp_path / "bench.png").stat().st_size > 5000
    assert "level with the best, of 7 cells" in repr(hand_made)


def test_functions_join_and_the_baselines_are_always_there():
    mine = {"mine": lambda model, inputs, target: inputs * 0 + 1, "lrp": "lrp"}
    found = bench("hand_made", mine, peers=False, n_samples=5, progress=False)
    assert set(found.methods) == {"mine", "lrp", "random"}


def test_functions_that_modify_inputs_harm_no_other_method():
    alone = bench("hand_made", ["lrp"], peers=False, n_samples=5, progress=False)
    ways = {"destroys": lambda model, inputs, target: inputs.mul_(0), "lrp": "lrp"}
    beside = bench("hand_made", ways, peers=False, n_samples=5, progress=False)
    for a, b in zip(alone.tasks, beside.tasks, strict=True):
        assert torch.equal(a.values["lrp"], b.values["lrp"])


def test_two_methods_of_one_class_are_two_rows():
    both = [whence.LRP(), whence.LRP(whence.presets.epsilon_plus())]
    found = bench("hand_made", both, peers=False, n_samples=5, progress=False)
    assert found.methods == ["lrp", "lrp 2", "random"]


def test_methods_that_fail_are_named_and_the_others_counted():
    def broken(model, inputs, target):
        raise ValueError("no such layer")

    ways = {"broken": broken, "nan": lambda model, inputs, target: inputs * torch.nan, "lrp": "lrp"}
    found = bench("hand_made", ways, peers=False, n_samples=5, progress=False)
    told = {failure.method: failure.message for failure in found.failures if failure.task.endswith("weighted")}
    assert "no such layer" in told["broken"]
    assert "NaN" in told["nan"]
    assert "lrp" in found.methods
    assert "broken" not in found.methods
    assert "broken cannot explain 7 tasks" in found.remarks


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"suites": "xai_tri"}, errors.RuleError, "did you mean 'xai_tris'"),
        ({"suites": []}, errors.RuleError, "no suites given"),
        ({"methods": ["lpr"]}, errors.RuleError, "unknown method 'lpr'"),
        ({"suites": [3]}, errors.RuleError, "expected names"),
        ({"suites": 3}, errors.RuleError, "expected names"),
        ({"methods": 3}, errors.RuleError, "methods=3; expected a method"),
        ({"methods": len}, errors.RuleError, "dict from names"),
        ({"methods": {3: "lrp"}}, errors.RuleError, "the name of a method is 3"),
        ({"methods": {"a": None}}, errors.RuleError, "method 'a' is None"),
        ({"n_samples": 3}, errors.InputError, "at least 5"),
        ({"n_samples": 5.5}, errors.InputError, "at least 5"),
        ({"n_samples": "10"}, errors.InputError, "at least 5"),
        ({"seed": "1"}, errors.InputError, "expected an int from 0"),
        ({"seed": 2**70}, errors.InputError, "expected an int from 0"),
        ({"peers": "captum"}, errors.InputError, "True or False"),
        ({"cache_dir": 5}, errors.InputError, "path of a folder"),
        ({"cache_dir": __file__}, errors.InputError, "cannot be used as a folder"),
    ],
)
def test_wrong_arguments_raise(arguments, error, message):
    with pytest.raises(error, match=message):
        bench(**arguments, progress=False)


def test_networks_that_learn_nothing_are_not_scored(monkeypatch):
    monkeypatch.setattr(xai_tris, "N_TRAIN", 500)
    monkeypatch.setitem(SUITES, "xai_tris", {name: xai_tris.TASKS[name] for name in ("XOR, linear network", "XOR, MLP")})
    found = bench("xai_tris", ["lrp"], peers=False, n_samples=5, progress=False)
    assert [task.task for task in found.tasks] == ["XOR, MLP"]
    assert [task.task for task in found.unlearned] == ["XAI-TRIS: XOR, linear network"]
    assert "is not scored" in found.remarks[0]
    monkeypatch.setitem(SUITES, "xai_tris", {"XOR, linear network": xai_tris.TASKS["XOR, linear network"]})
    with pytest.raises(errors.RuleError, match="no network of these suites reached the accuracy"):
        bench("xai_tris", ["lrp"], peers=False, n_samples=5, progress=False)


def test_runs_repeat_and_leave_the_process_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setitem(SUITES, "xai_tris", {"linear, linear network": xai_tris.TASKS["linear, linear network"]})
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    first = bench("xai_tris", peers=False, n_samples=20, cache_dir=tmp_path, progress=False)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)
    (kept,) = tmp_path.glob("*.pt")
    trained = kept.stat().st_mtime_ns
    again = bench("xai_tris", peers=False, n_samples=20, cache_dir=tmp_path, progress=False)
    assert kept.stat().st_mtime_ns == trained
    kept.write_bytes(b"damaged")
    repaired = bench("xai_tris", peers=False, n_samples=20, cache_dir=tmp_path, progress=False)
    for other in (again, repaired):
        for name, values in first.tasks[0].values.items():
            torch.testing.assert_close(other.tasks[0].values[name], values)
    assert first.tasks[0].intervals["lrp"].mean > 0.4 > first.tasks[0].intervals["edge filter"].mean


def test_training_centers_logits_and_depends_on_the_seed():
    x, y = torch.randn(200, 4), torch.randint(3, (200,))
    a, b, c = (train(lambda: nn.Linear(4, 3), x, y, None, seed=seed, epochs=2) for seed in (0, 0, 1))
    torch.testing.assert_close(a(x).sum(1), torch.zeros(200), atol=1e-5, rtol=0)
    assert torch.equal(a(x), b(x))
    assert not torch.equal(a(x), c(x))


# what the suites generate


def test_tetrominoes_are_where_their_masks_are():
    random = torch.Generator().manual_seed(0)
    for scenario in xai_tris.ALPHAS:
        x, y, masks = xai_tris.pictures(scenario, 4000, random)
        assert masks.sum((1, 2)).unique().tolist() == [8 if scenario == "XOR" else 4]
        inside = x[:, 0].abs().mul(masks).sum() / masks.sum()
        outside = x[:, 0].abs().mul(~masks).sum() / (~masks).sum()
        assert inside < 0.5 * outside if scenario == "multiplicative" else inside > 1.2 * outside
    t_first = x[(y == 0)][:, 0, 1:4, 1:3] * xai_tris.T_SHAPE
    l_first = x[(y == 0)][:, 0, 4:7, 5:7] * xai_tris.L_SHAPE
    assert (t_first.mean((1, 2)) * l_first.mean((1, 2)) > 0).double().mean() > 0.95  # equal signs


def test_motifs_are_parts_of_connected_graphs():
    adjacency, y, motif = graph_motifs.graphs(50, torch.Generator().manual_seed(0))
    assert torch.equal(adjacency, adjacency.transpose(1, 2))
    assert not adjacency.diagonal(dim1=1, dim2=2).any()
    assert (adjacency[motif] == 1).all()
    assert torch.equal(motif.sum((1, 2)) // 2, torch.where(y == 1, 6, 5))
    reach = torch.linalg.matrix_power(adjacency + torch.eye(25), 24)
    assert (reach > 0).all()


def test_sequences_and_texts_hold_their_truth():
    random = torch.Generator().manual_seed(0)
    x, y, truth = lstm_arithmetic.sequences(-1.0, 50, random)
    marked = x[..., 1][x[..., 1] != 0].view(50, 2)
    torch.testing.assert_close(y[:, 0], marked[:, 0] - marked[:, 1])
    assert ((truth != 0) == (x[..., 1:] != 0) * torch.tensor([False, True])).all()
    ids, labels, mask = lexical_shortcuts.texts("order", 50, random)
    first = ids[mask].view(50, 2)[:, 0]
    assert torch.equal(first == lexical_shortcuts.SECOND, labels == 1)
    assert (ids[~mask] > 2).all()


def test_a_part_that_is_not_drawn_changes_its_pixels_alone():
    y, random = torch.arange(8), torch.Generator().manual_seed(0)
    state = random.get_state()
    x, parts = drawn_figures.figures(y, random)
    without, _ = drawn_figures.figures(y, random.set_state(state), torch.tensor([[False, True, True, True]]).expand(8, -1))
    changed = (x != without).any(1)
    assert changed.any()
    assert ((parts == 0) | ~changed).all()


def test_cells_of_a_mosaic_see_themselves_alone():
    torch.manual_seed(0)
    model = drawn_figures.OneCellPerClass(drawn_figures.picture_network()).eval()
    e = whence.explain(model, torch.rand(2, 3, 64, 64), target=torch.tensor([3, 8 + 2]))
    sums = e.relevance.abs().sum(1).unflatten(1, (2, 32)).unflatten(3, (2, 32)).sum((2, 4)).flatten(1)
    assert (sums > 0).tolist() == [[True, False, False, False], [False, True, False, False]]


# metrics


def test_areas_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    values, mask = random.standard_normal((5, 40)), random.random((5, 40)) < 0.3
    found = average_precision(torch.tensor(values), torch.tensor(mask))
    np.testing.assert_allclose(found, [average_precision_score(m, v) for m, v in zip(mask, values, strict=True)])
    tied = np.round(values[0])
    np.testing.assert_allclose(roc_auc(torch.tensor(tied), torch.tensor(mask[0])), roc_auc_score(mask[0], tied))


def changes_weights(model, inputs, target):
    for parameter in model.parameters():
        parameter.data.zero_()
    return inputs


def leaves_a_hook(model, inputs, target):
    model.register_forward_hook(lambda module, args, out: out * 0)
    return inputs


def changes_torch(model, inputs, target):
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    return inputs


@pytest.mark.parametrize("harmful", [changes_weights, leaves_a_hook, changes_torch])
def test_what_a_method_changes_reaches_no_other_method(harmful):
    options = {"peers": False, "n_samples": 5, "progress": False}
    alone = bench("hand_made", ["integrated_gradients"], **options)
    beside = bench("hand_made", {"harmful": harmful, "integrated_gradients": "integrated_gradients"}, **options)
    for a, b in zip(alone.tasks, beside.tasks, strict=True):
        assert torch.equal(a.values["integrated_gradients"], b.values["integrated_gradients"])
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    if harmful is not changes_torch:
        assert "changed the model" in next(each for each in beside.failures if each.method == "harmful").message


def test_no_state_of_the_process_decides_a_score_or_is_changed(hand_made):
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            found = bench("hand_made", n_samples=20, progress=False)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert found.methods == hand_made.methods
    for a, b in zip(hand_made.tasks, found.tasks, strict=True):
        for name in a.values:  # of shap's GradientExplainer too, which draws
            assert torch.equal(a.values[name], b.values[name]), name


@pytest.mark.parametrize("name", ["random", "edge filter", "captum Saliency"])
def test_names_of_the_baselines_and_of_peers_are_taken(name):
    with pytest.raises(errors.RuleError, match="choose another name"):
        bench("hand_made", {name: lambda model, inputs, target: inputs}, n_samples=5, progress=False)


def test_a_run_in_which_no_method_works_says_so(monkeypatch):
    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("whence.benchmarking.bench._evaluate", full)
    with pytest.raises(errors.RuleError, match=r"no method has a score in any task; lrp failed on .* no space left"):
        bench("hand_made", ["lrp"], peers=False, n_samples=5, progress=False)


def test_relevance_of_one_value_per_sample_is_refused():
    wrong = {"one": lambda model, inputs, target: inputs.sum(1, keepdim=True)}
    found = bench("hand_made", wrong, peers=False, n_samples=5, progress=False)
    message = next(each for each in found.failures if each.method == "one").message
    assert "returned relevance of shape (1, 1) for inputs of shape (1, 10)" in message
