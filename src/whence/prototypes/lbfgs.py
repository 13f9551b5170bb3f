"""Quasi-Newton ascent (L-BFGS, Nocedal 1980) of many functions at once, independently of each other."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]  # x [K, n] -> f [K] and its gradient [K, n]
Precondition = Callable[[Tensor], Tensor]  # of a gradient [K, n]: −H₀⁻¹ g

MEMORY = 10  # steps of which curvature is stored
MAX_HALVINGS = 12
STALL_WINDOW, STALL_TOLERANCE = 6, 1e-3  # steps; relative to the value
GRADIENT_TOLERANCE = 1e-13  # relative to the value: the argument is then accurate to about 1e-6
ARMIJO = 1e-4  # required share of the increase that the slope predicts (Armijo)


@dataclass
class InverseHessian:
    """An approximation of −H⁻¹ from the last steps and the changes of the gradient along them."""

    precondition: Precondition | None
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def times(self, g: Tensor) -> Tensor:
        """Return −H⁻¹ g by the two-loop recursion."""
        remembered = []
        for s, y in reversed(self.pairs):
            weight = _ratio(_dot(s, g), _dot(s, y))
            g = g - weight[:, None] * y
            remembered.append(weight)
        d = self._initial(g)
        for (s, y), weight in zip(self.pairs, reversed(remembered), strict=True):
            d = d + (weight - _ratio(_dot(y, d), _dot(s, y)))[:, None] * s
        return d

    def learn(self, s: Tensor, fall: Tensor) -> None:
        """Store a step and the decrease of the gradient along it, zeros where the curvature is not positive."""
        bent = (_dot(s, fall) > 1e-10 * s.norm(dim=1) * fall.norm(dim=1))[:, None]
        self.pairs = [*self.pairs, (torch.where(bent, s, 0), torch.where(bent, fall, 0))][-MEMORY:]

    def _initial(self, g: Tensor) -> Tensor:
        if self.precondition is not None:
            return self.precondition(g)
        if not self.pairs:
            return g / g.norm(dim=1, keepdim=True).clamp(min=1.0)
        s, y = self.pairs[-1]
        scale = _ratio(_dot(s, y), _dot(y, y))
        return torch.where(scale > 0, scale, 1 / g.norm(dim=1).clamp(min=1.0))[:, None] * g


def ascend(evaluate: Evaluate, x: Tensor, steps: int, precondition: Precondition | None = None) -> tuple[Tensor, Tensor]:
    """Return the highest points `[K, n]` reached from `x`, and which functions were still increasing after the last step."""
    f, g = evaluate(x)
    curvature, going = InverseHessian(precondition), torch.isfinite(f)
    course = [f]
    for _ in range(steps):
        if not going.any():
            break
        d = curvature.times(g)
        d = torch.where((_dot(d, g) > 0)[:, None], d, InverseHessian(precondition).times(g))
        after, f_after, g_after, stepped = _line_search(evaluate, x, f, g, d, going)
        curvature.learn(torch.where(stepped[:, None], after - x, 0), torch.where(stepped[:, None], g - g_after, 0))
        left = _dot(curvature.times(g_after), g_after)  # twice the increase that remains by the quadratic model
        going = (
            going & stepped & ((f_after > f + _rounding(f)) | (left < _dot(d, g))) & (left > GRADIENT_TOLERANCE * f_after.abs())
        )
        x, f, g = after, f_after, g_after
        course = [*course, f][-STALL_WINDOW:]
    return x, going & (f - course[0] > STALL_TOLERANCE * f.abs())


def _line_search(
    evaluate: Evaluate, x: Tensor, f: Tensor, g: Tensor, d: Tensor, going: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take the first of the steps d, d/2, d/4, … that satisfies the Armijo condition up to rounding, no step if none does."""
    length, searching = going.to(x.dtype), going.clone()
    lowest, slope = f - _rounding(f), _dot(d, g)
    found, f_found, g_found = x.clone(), f.clone(), g.clone()
    for _ in range(MAX_HALVINGS):
        tried = x + length[:, None] * d
        f_tried, g_tried = evaluate(tried)
        enough = searching & torch.isfinite(f_tried) & (f_tried >= lowest + ARMIJO * length * slope)
        found[enough], f_found[enough], g_found[enough] = tried[enough], f_tried[enough], g_tried[enough]
        searching = searching & ~enough
        if not searching.any():
            break
        length = torch.where(searching, length / 2, length)
    return found, f_found, g_found, going & ~searching


def _rounding(f: Tensor) -> Tensor:
    return 10 * torch.finfo(f.dtype).eps * f.abs()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b == 0, 0, a / torch.where(b == 0, 1, b))
