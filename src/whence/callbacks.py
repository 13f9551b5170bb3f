"""Callbacks that audit a network while it is trained, for loops of PyTorch, Lightning and transformers."""

from whence.core.public_names import namespace
from whence.monitoring.trackers import mlflow_tracker, tensorboard_tracker, wandb_tracker
from whence.monitoring.trainer_callbacks import lightning_callback, transformers_callback
from whence.monitoring.training_audit import TrainingAudit, TrainingRecord

__all__ = [
    "TrainingAudit",
    "TrainingRecord",
    "lightning_callback",
    "mlflow_tracker",
    "tensorboard_tracker",
    "transformers_callback",
    "wandb_tracker",
]
__getattr__ = namespace(__name__, globals())
