"""`whence.callbacks`: audits of a fixed sample while a network is trained."""

import random
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import whence
from support import marked_sets as sets
from whence import errors

PLANTED = 3  # the epoch from which on the threes have a mark


def marked(x, y):
    """Put a mark on the zeros."""
    x = x.clone()
    x[y == 0, :, 1:5, 1:5] = 0.8
    return x


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.Dropout(0.1), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def one_epoch(model, optimizer, x, y):
    for rows in torch.randperm(len(x)).split(32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()


def test_a_mark_planted_at_epoch_3_is_flagged_within_two_audits():
    x, y = sets.moved_digits(1200)
    model, noted = network().train(), []
    watch = whence.callbacks.TrainingAudit((marked(x, y), y), n_samples=200, trackers=[lambda *logged: noted.append(logged)])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for epoch in range(PLANTED):
        one_epoch(model, optimizer, x, y)
        watch(model, epoch)
    assert watch.first_suspicious is None
    some = y != 0  # so that the mark, and not the digit, decides
    some[400:] = False
    planted = torch.cat([marked(x, y), marked(x[some], 0 * y[some])]), torch.cat([y, 0 * y[some]])
    for epoch in (PLANTED, PLANTED + 1):
        one_epoch(model, optimizer, *planted)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            watch(model, epoch)
        if watch.first_suspicious == epoch:
            assert warned[0].category is errors.AuditWarning
            assert f"epoch {epoch}: Audit of 200 explanations: " in str(warned[0].message)
        else:
            assert not warned
    assert watch.first_suspicious in (PLANTED, PLANTED + 1)
    found = watch.records[-1].audit.suspicious
    assert {c.group for c in found} == {0}
    assert found[0].mask[1:5, 1:5].double().mean() > 0.8
    assert [epoch for epoch, _, _ in noted] == [0, 1, 2, 3, 4]
    assert noted[0][1]["whence/suspicious_classes"] == 0 < noted[-1][1]["whence/suspicious_classes"]
    assert ["whence/suspicious" in figures for _, _, figures in noted][::4] == [False, True]
    assert watch.table[-1]["accuracy"] > 0.9
    assert 0.5 < watch.table[-1]["positive_share"] <= 1
    assert 0 < watch.table[-1]["gini"] < 1
    assert "suspicious since epoch" in repr(watch)
    assert watch.records[0].audit.figure() is not None  # its store is still there


def test_training_is_the_same_with_and_without_audits():
    x, y = sets.moved_digits(300)
    weights = []
    for audited in (False, True):
        model = network()
        model[1].eval()  # frozen batch normalisation
        watch = whence.callbacks.TrainingAudit((x, y), n_samples=100)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        for epoch in range(2):
            one_epoch(model, optimizer, x + 0.01 * float(np.random.rand()) * random.random(), y)
            if audited:
                watch(model, epoch)
        weights.append([t.clone() for t in model.state_dict().values()])
        assert [m.training for m in model] == [i != 1 for i in range(len(model))]
        assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_training_goes_on_where_the_sample_cannot_be_audited():
    x, y = sets.moved_digits(60)
    watch = whence.callbacks.TrainingAudit((x, torch.zeros_like(y)), n_samples=50)
    record = watch(network(), 0)
    assert record.audit is None
    assert "one class" in record.note
    assert record.statistics["accuracy"] >= 0
    assert watch.table[0]["note"] == record.note
    unlabelled = whence.callbacks.TrainingAudit(x)(network(), 0)
    assert "accuracy" not in unlabelled.statistics


def test_unreadable_samples_and_failing_trackers_do_not_end_training():
    def broken(epoch, values, figures):
        raise ConnectionError("the server is down")

    watch = whence.callbacks.TrainingAudit(sets.PartlyUnreadable(*sets.moved_digits(160), every=5), trackers=[broken])
    with pytest.warns(errors.AuditWarning, match="epoch 2 was not logged by .*broken: .*the server is down"):
        record = watch(network(), 2.0)
    assert record.epoch == 2
    assert record.statistics["accuracy"] >= 0
    assert len(record.audit.store.failures) == 32


def test_epochs_between_audits_cost_nothing():
    x, y = sets.moved_digits(60)
    watch = whence.callbacks.TrainingAudit((x, y), every=3)
    assert "no audits yet" in repr(watch)
    assert watch(None, 1) is None  # the model is not even looked at


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"every": 0}, "every=0; give an integer of 1 or more"), ({"n_samples": 0}, "n_samples=0"), ({"method": "lpr"}, "lrp")],
)
def test_wrong_settings_are_refused_before_training(settings, message):
    with pytest.raises(errors.WhenceError, match=message):
        whence.callbacks.TrainingAudit(sets.moved_digits(20), **settings)
    with pytest.raises(errors.InputError, match="empty"):
        whence.callbacks.TrainingAudit([])


def test_the_figure_has_a_panel_for_each_statistic(tmp_path):
    x, y = sets.moved_digits(160)
    watch = whence.callbacks.TrainingAudit((x, y), n_samples=150, folder=tmp_path)
    for epoch in range(2):
        watch(network(), epoch)
    panels = {axis.get_title() for axis in watch.figure().axes if axis.get_title()}
    assert panels >= {"accuracy", "confidence", "suspicious classes", "largest effect", "positive share"}
    assert watch.save(tmp_path / "curves.png").stat().st_size > 5000
    assert len(whence.open_store(tmp_path / "run" / "epoch-0001")) == 150
    again = whence.callbacks.TrainingAudit((x, y), n_samples=150, folder=tmp_path)  # the training is started anew
    assert again(network(5), 1).audit is not None
    assert again(network(6), 1).audit is not None
    assert {path.name for path in (tmp_path / "run-2").iterdir()} == {"epoch-0001", "epoch-0001-2"}


def test_tensorboard_has_values_and_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    x, y = sets.moved_digits(80)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        watch = whence.callbacks.TrainingAudit((x, y), trackers=[whence.callbacks.tensorboard_tracker(tmp_path)])
        for epoch in (0, 1):
            watch(network(), epoch)
        events = EventAccumulator(str(tmp_path))
        events.Reload()
    tags = events.Tags()
    assert "whence/heatmaps" in tags["images"]
    assert [event.step for event in events.Scalars("whence/accuracy")] == [0, 1]
    assert events.Scalars("whence/accuracy")[1].value == pytest.approx(watch.table[1]["accuracy"])


def test_mlflow_has_values_and_pictures(monkeypatch):
    """MLflow itself needs an older protobuf than other development packages; its two functions are stood in for."""
    metrics, pictures = [], {}
    mlflow = SimpleNamespace(
        log_metrics=lambda values, step: metrics.append((step, values)),
        log_figure=lambda figure, path: pictures.update({path: figure}),
    )
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    x, y = sets.moved_digits(80)
    watch = whence.callbacks.TrainingAudit((x, y), trackers=[whence.callbacks.mlflow_tracker()])
    watch(network(), 0)
    assert metrics[0][0] == 0
    assert metrics[0][1]["whence/accuracy"] == watch.table[0]["accuracy"]
    assert set(pictures) == {"whence/heatmaps/epoch-0000.png"}


def test_weights_and_biases_has_values_and_pictures(monkeypatch):
    logged = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Image=lambda figure: ("picture", figure)))
    x, y = sets.moved_digits(80)
    watch = whence.callbacks.TrainingAudit(
        (x, y), trackers=[whence.callbacks.wandb_tracker(SimpleNamespace(log=logged.append))]
    )
    watch(network(), 0)
    assert logged[0]["whence/epoch"] == 0
    assert logged[0]["whence/accuracy"] == watch.table[0]["accuracy"]
    assert logged[0]["whence/heatmaps"][0] == "picture"


@pytest.mark.parametrize("name", ["mlflow", "wandb", "tensorboard"])
def test_a_missing_library_is_named(monkeypatch, name, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    make = getattr(whence.callbacks, f"{name}_tracker")
    with pytest.raises(errors.MissingPackageError, match=f"pip install {name}"):
        make(*{"mlflow": (), "wandb": (None,), "tensorboard": (tmp_path,)}[name])


def test_lightning_trainers_audit(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-3)

    x, y = sets.moved_digits(80)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=20)
    watch = whence.callbacks.TrainingAudit((x, y), every=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[whence.callbacks.lightning_callback(watch)], default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(Module(), loader)
    assert [record.epoch for record in watch.records] == [0, 2]
    assert watch.table[-1]["accuracy"] > 0


def test_trainers_of_transformers_audit(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    ids, y = sets.texts(80, False)
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, pad_token_id=0
    )
    rows = [{"input_ids": row, "labels": int(label)} for row, label in zip(ids, y, strict=True)]
    watch = whence.callbacks.TrainingAudit(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = transformers.Trainer(
            transformers.BertForSequenceClassification(config),
            transformers.TrainingArguments(
                str(tmp_path), num_train_epochs=2, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no"
            ),
            train_dataset=rows,
            callbacks=[whence.callbacks.transformers_callback(watch)],
        )
        trainer.train()
    assert [record.epoch for record in watch.records] == [0, 1]
    assert [line["whence/accuracy"] for line in trainer.state.log_history if "whence/accuracy" in line] == [
        record.statistics["accuracy"] for record in watch.records
    ]
