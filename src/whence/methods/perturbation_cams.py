"""Class activation maps without gradients: the weight of a channel is measured by one evaluation of the model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whence.errors import SelectorError
from whence.lrp.engine.model_outputs import first_tensor, with_first_tensor
from whence.lrp.torch_compat.module_tracker import named_layers
from whence.lrp.torch_compat.torch_patches import FORCE_EAGER, enter_all, temporary_hook
from whence.methods.batching import run_batched, warn_of_many_rounds
from whence.methods.class_activation_maps import ClassActivationMap, TappedMap, picture_input
from whence.methods.feature_maps import to_unit_range
from whence.methods.forward_backward import Task, target_values


@dataclass(frozen=True)
class ScoreCAM(ClassActivationMap):
    """Score-CAM, max(0, Σ_c w_c a_c), w the softmax over channels of f(x ⊙ mask_c) (Wang et al. 2020, eq. 3 to 6).

    >>> whence.explain(model, x, target=3, method=whence.ScoreCAM("layer4")).relevance

    The mask of a channel is its activation, resized to the input and scaled to [0, 1]. The model is evaluated once for each
    channel. The scores do not add up to the output.

    Args:
        layer: Path of a module, or the module, whose output is a feature map, or several, as in `GradCAM`.
        relu: Whether to set negative values, which are evidence against the target, to 0.
        batch_size: Number of masked samples that the model evaluates at once; chosen by the size of the input by default.
    """

    batch_size: int | None = None

    name: ClassVar[str] = "score_cam"

    def combined(self, task: Task, tapped: TappedMap) -> Tensor:
        i, x = picture_input(task, "class activation maps")
        a = tapped.activations

        def masked(channels: slice) -> Tensor:
            masks = a[:, channels].transpose(0, 1).flatten(0, 1)[:, None]  # [channels · N, 1, …]
            copies = x.repeat(channels.stop - channels.start, *[1] * (x.dim() - 1))
            masks = to_unit_range(tapped.feature_map.resized(masks, copies))
            return outputs_of(task, tapped, {i: copies * masks}, channels.stop - channels.start)

        scores = channel_outputs(self, task, tapped, masked)
        return (_as_weights(scores.softmax(0), a) * a).sum(1, keepdim=True)


@dataclass(frozen=True)
class AblationCAM(ClassActivationMap):
    """Ablation-CAM, max(0, Σ_c w_c a_c), w_c = f(x) − f(x with channel c set to 0) (Desai and Ramaswamy 2020, eq. 3 and 4).

    >>> whence.explain(model, x, target=3, method=whence.AblationCAM("layer4")).relevance

    The paper divides the weights by f(x), which scales the map of a sample, and would invert it where f(x) < 0. The model is
    evaluated once for each channel. The scores do not add up to the output.

    Args:
        layer: Path of a module, or the module, whose output is a feature map, or several, as in `GradCAM`.
        relu: Whether to set negative values, which are evidence against the target, to 0.
        batch_size: Number of samples that the model evaluates at once; chosen by the size of the input by default.
    """

    batch_size: int | None = None

    name: ClassVar[str] = "ablation_cam"

    def combined(self, task: Task, tapped: TappedMap) -> Tensor:
        if tapped.calls > 1:
            raise SelectorError(
                f"layer '{tapped.layer}' is called {tapped.calls} times, so that a channel of one call cannot be set to 0; "
                "choose a layer that is called once"
            )
        module = named_layers(task.model, [tapped.layer])[tapped.layer]

        def without(channels: slice) -> Tensor:
            with _ablated(module, tapped, torch.arange(channels.start, channels.stop)):
                return outputs_of(task, tapped, {}, channels.stop - channels.start)

        scores = channel_outputs(self, task, tapped, without)
        a = tapped.activations
        return (_as_weights(tapped.output - scores, a) * a).sum(1, keepdim=True)


def channel_outputs(method: ClassActivationMap, task: Task, tapped: TappedMap, evaluate: Callable[[slice], Tensor]) -> Tensor:
    """Return the explained output `[C, N]` of the evaluation for each channel, as many at once as memory allows."""
    count = tapped.activations.shape[1]
    warn_of_many_rounds(method, count, "choose a layer of fewer channels")
    return torch.cat(list(run_batched(method, task, count, evaluate, method.batch_size)))  # type: ignore[attr-defined]


def outputs_of(task: Task, tapped: TappedMap, altered: dict[int, Tensor], channels: int) -> Tensor:
    """Return the explained output `[channels, N]` of altered inputs `[channels · N, …]`."""
    with enter_all(FORCE_EAGER):  # hooks on parts of a compiled graph do not run
        ((output, _),) = target_values(task.moved(channels, altered, [tapped.target]))
    return output.view(channels, -1)


def _ablated(module: nn.Module, tapped: TappedMap, channels: Tensor) -> enter_all:
    """Set one channel of a module's output to 0 in each of several copies of the samples, as a context manager."""
    samples, count = tapped.activations.shape[:2]
    chosen = F.one_hot(channels, count).bool().repeat_interleave(samples, 0)  # [channels · N, C]

    def hook(module: nn.Module, args: tuple, out: Any) -> Any:
        a = first_tensor(out)
        assert a is not None  # it was tapped
        shape = [count if d == tapped.feature_map.channels else 1 for d in range(a.dim())]
        return with_first_tensor(out, a.masked_fill(chosen.to(a.device).view(-1, *shape[1:]), 0), tapped.layer)

    return temporary_hook(lambda: module.register_forward_hook(hook))


def _as_weights(scores: Tensor, a: Tensor) -> Tensor:
    """Return scores `[C, N]` as weights of the channels, `[N, C, 1, …]`."""
    return scores.T.reshape(*a.shape[:2], *[1] * (a.dim() - 2)).to(a)
