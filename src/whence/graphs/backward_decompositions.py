"""Backward passes of linear functions, written in functions that compilers and ONNX support."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

aten = torch.ops.aten


def convolution_backward(
    g: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int, mask: Sequence[bool],
) -> tuple[Tensor, None, None]:  # fmt: skip
    """Compute the gradient of a convolution with respect to its input, as a convolution with `transposed` inverted."""
    beyond = _overhang(x.shape, g.shape, weight.shape, stride, padding, dilation, transposed)
    back = aten.convolution(g, weight, None, stride, padding, dilation, not transposed, beyond, groups)
    return back, None, None


def replace_convolution_backward(graph: GraphModule) -> GraphModule:
    """Replace the backward passes of convolutions in a graph by convolutions with `transposed` inverted, if sizes are fixed.

    Compiled, these take half the time and are exact to rounding; those of torch have another memory layout and an error of
    1e-3.
    """
    for node in graph.graph.find_nodes(op="call_function", target=aten.convolution_backward.default):
        given: Any = node.args
        g, x, weight, _, stride, padding, dilation, transposed, _, groups, _ = given
        sizes = [t.meta["val"].shape for t in (x, g, weight)]
        if not all(isinstance(size, int) for shape in sizes for size in shape[2:]):
            continue
        beyond = _overhang(sizes[0], sizes[1], sizes[2], stride, padding, dilation, transposed)
        args = (g, weight, None, stride, padding, dilation, not transposed, beyond, groups)
        with graph.graph.inserting_before(node):
            back = graph.graph.call_function(aten.convolution.default, args)
        for user in list(node.users):  # getitem: the first of the three gradients
            user.replace_all_uses_with(back)
            graph.graph.erase_node(user)
        graph.graph.erase_node(node)
    graph.recompile()
    return graph


def replace_views(graph: GraphModule) -> GraphModule:
    """Replace the views in a graph, whose memory layout a compiler may choose otherwise, by `reshape`."""
    for view in graph.graph.find_nodes(op="call_function", target=aten.view.default):
        view.target = aten.reshape.default
    graph.recompile()
    return graph


def adaptive_avg_pool_backward(g: Tensor, x: Tensor) -> Tensor:
    """Compute the gradient of adaptive average pooling with respect to its input, one dimension at a time."""
    for d in range(-(x.dim() - 2), 0):
        number, size, bins = torch.arange(g.shape[d], device=g.device), x.shape[d], g.shape[d]
        start, stop = number * size // bins, ((number + 1) * size + bins - 1) // bins
        g = _distribute(g, d, start, stop, size, stop - start)
    return g


def avg_pool_backward(
    g: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool,
    count_include_pad: bool, divisor: int | None,
) -> Tensor:  # fmt: skip
    """Compute the gradient of average pooling with respect to its input."""
    spatial = len(kernel)
    stride = stride or kernel
    for i, d in enumerate(range(-spatial, 0)):
        (k, s, p), size = [_at(sizes, i) for sizes in (kernel, stride, padding)], x.shape[d]
        start = torch.arange(g.shape[d], device=g.device) * s - p
        stop = (start + k).clamp(max=size + p)
        inside = start.clamp(min=0), stop.clamp(max=size)
        count = stop - start if count_include_pad else inside[1] - inside[0]
        count = count if divisor is None else torch.ones_like(start)
        g = _distribute(g, d, *inside, size, count)
    return g if divisor is None else g / divisor


def max_pool_backward(g: Tensor, x: Tensor, *rest: Any) -> Tensor:
    """Compute the gradient of max pooling with respect to its input: all of it goes to the maximum."""
    *_, indices = rest
    spatial = x.dim() - 2 if x.dim() > 3 else 2
    flat = torch.zeros_like(x).flatten(-spatial)
    return flat.scatter_add(-1, indices.flatten(-spatial), g.flatten(-spatial)).view(x.shape)


def _overhang(
    x: torch.Size, g: torch.Size, weight: torch.Size, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    transposed: bool,
) -> list[int]:  # fmt: skip
    """Return the output padding with which the inverted convolution has the size of the input."""
    if transposed:
        return [0] * len(stride)
    sizes = zip(x[2:], g[2:], weight[2:], stride, padding, dilation, strict=True)
    return [n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, k, s, p, d in sizes]


def _at(sizes: Sequence[int], i: int) -> int:
    return sizes[i] if len(sizes) > 1 else sizes[0]


def _distribute(g: Tensor, dim: int, start: Tensor, stop: Tensor, size: int, count: Tensor) -> Tensor:
    """Distribute each value, divided by its count, to the positions from start to stop along a dimension."""
    place = torch.arange(size, device=g.device)
    shares = ((place >= start[:, None]) & (place < stop[:, None])).to(g.dtype)
    shares = shares / count[:, None].to(g.dtype)
    return (g.movedim(dim, -1) @ shares).movedim(-1, dim)


def avg_pool(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,), ceil_mode: bool = False,
    count_include_pad: bool = True, divisor: int | None = None,
) -> Tensor:  # fmt: skip
    """Compute average pooling with an explicit divisor, which torch's exporter ignores."""
    if divisor is None:
        return NotImplemented
    spatial = x.dim() - 2
    share = prod(_at(kernel, i) for i in range(spatial)) / divisor
    pooling = aten.avg_pool2d if spatial == 2 else aten.avg_pool3d
    return pooling(x, kernel, stride, padding, ceil_mode, True) * share


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.convolution_backward.default: convolution_backward,
    aten._adaptive_avg_pool2d_backward.default: adaptive_avg_pool_backward,
    aten._adaptive_avg_pool3d_backward.default: adaptive_avg_pool_backward,
    aten.avg_pool2d.default: avg_pool,
    aten.avg_pool3d.default: avg_pool,
    aten.avg_pool2d_backward.default: avg_pool_backward,
    aten.avg_pool3d_backward.default: avg_pool_backward,
    aten.max_pool2d_with_indices_backward.default: max_pool_backward,
    aten.max_pool3d_with_indices_backward.default: max_pool_backward,
    aten.adaptive_max_pool2d_backward.default: max_pool_backward,
    aten.adaptive_max_pool3d_backward.default: max_pool_backward,
}
