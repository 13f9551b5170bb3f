"""Callbacks that run a `TrainingAudit` in the trainers of other libraries."""

from typing import Any

from whence.core.argument_checks import check_arguments
from whence.core.optional_packages import import_package
from whence.monitoring.training_audit import TrainingAudit


@check_arguments
def lightning_callback(watch: TrainingAudit) -> Any:
    """Return a callback for the Trainer of Lightning, which audits at the end of training epochs.

    >>> trainer = lightning.Trainer(callbacks=[whence.callbacks.lightning_callback(watch)])

    The values are also logged with the trainer's loggers. With several processes, the first audits.

    Args:
        watch: The audit; its data are explained with the `LightningModule`, whose `forward` returns logits.

    Returns:
        A `lightning.pytorch.Callback`.

    Raises:
        MissingPackageError: If lightning is not installed.
    """
    lightning = import_package("lightning.pytorch")

    class LightningAudit(lightning.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.is_global_zero:
                return
            record = watch(pl_module, trainer.current_epoch)
            if record is not None:
                for logger in trainer.loggers:
                    logger.log_metrics(record.logged, step=trainer.global_step)

    return LightningAudit()


@check_arguments
def transformers_callback(watch: TrainingAudit) -> Any:
    """Return a callback for the Trainer of transformers, which audits at the end of epochs.

    >>> audits = whence.callbacks.transformers_callback(watch)
    >>> trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[audits])

    The values are added to the trainer's log history. With several processes, the first audits.

    Args:
        watch: The audit.

    Returns:
        A `transformers.TrainerCallback`.

    Raises:
        MissingPackageError: If transformers is not installed.
    """
    transformers = import_package("transformers")

    class TransformersAudit(transformers.TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if not state.is_world_process_zero:
                return
            record = watch(model, round(state.epoch) - 1)
            if record is not None:
                state.log_history.append({**record.logged, "epoch": state.epoch, "step": state.global_step})

    return TransformersAudit()
