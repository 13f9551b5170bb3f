"""Checks of explanations of one class rather than another."""

import torch

from whence.core.explanation import Explanation
from whence.core.targets import Logit
from whence.errors import TargetError


def check_comparison(explanation: Explanation) -> None:
    """Raise `TargetError` if the predicted class is compared with itself."""
    target = explanation.target
    if not isinstance(target, Logit) or target.rather_than is None:
        return
    index, other = (torch.as_tensor(i) for i in (target.index, target.rather_than))
    if (index == other).all():
        name = explanation.target_names()[0].split(" rather than ")[0]
        raise TargetError(f"{name} is compared with itself; choose another target, or another class to compare it with")
