"""Trackers: functions that log the values and figures of an epoch with an experiment tracking library."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whence.core.argument_checks import check_arguments
from whence.core.optional_packages import import_package
from whence.monitoring.training_audit import Tracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@check_arguments
def tensorboard_tracker(folder: str | Path) -> Tracker:
    """Return a tracker that writes event files for TensorBoard.

    >>> watch = whence.callbacks.TrainingAudit((x, y), trackers=[whence.callbacks.tensorboard_tracker("runs/audit")])

    Args:
        folder: The folder of the event files.

    Raises:
        MissingPackageError: If tensorboard is not installed.
    """
    tensorboard = import_package("torch.utils.tensorboard", "tensorboard")

    def track(epoch: int, values: Mapping[str, float], figures: Mapping[str, "Figure"]) -> None:
        with tensorboard.SummaryWriter(
            str(folder)
        ) as writer:  # an open writer has a thread, which would hold up the end of the process
            for name, value in values.items():
                writer.add_scalar(name, value, epoch)
            for name, figure in figures.items():
                writer.add_figure(name, figure, epoch)

    return track


@check_arguments
def mlflow_tracker() -> Tracker:
    """Return a tracker that logs to the active run of MLflow.

    >>> with mlflow.start_run():
    ...     watch = whence.callbacks.TrainingAudit((x, y), trackers=[whence.callbacks.mlflow_tracker()])

    Raises:
        MissingPackageError: If mlflow is not installed.
    """
    mlflow = import_package("mlflow")

    def track(epoch: int, values: Mapping[str, float], figures: Mapping[str, "Figure"]) -> None:
        mlflow.log_metrics(dict(values), step=epoch)
        for name, figure in figures.items():
            mlflow.log_figure(figure, f"{name}/epoch-{epoch:04d}.png")

    return track


@check_arguments
def wandb_tracker(run: Any) -> Tracker:
    """Return a tracker that logs to a run of Weights & Biases.

    >>> run = wandb.init(project="scans")
    >>> watch = whence.callbacks.TrainingAudit((x, y), trackers=[whence.callbacks.wandb_tracker(run)])

    The epoch is logged as `whence/epoch`, since the steps of a run belong to its training loop.

    Args:
        run: The run, as `wandb.init` returns it.

    Raises:
        MissingPackageError: If wandb is not installed.
    """
    wandb = import_package("wandb")

    def track(epoch: int, values: Mapping[str, float], figures: Mapping[str, "Figure"]) -> None:
        pictures = {name: wandb.Image(figure) for name, figure in figures.items()}
        run.log({"whence/epoch": epoch, **values, **pictures})

    return track
