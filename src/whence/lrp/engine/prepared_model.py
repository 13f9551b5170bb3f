"""The state of an explanation that does not depend on the input: the model's modules, matched rules, modified weights."""

from collections.abc import Mapping
from copy import copy
from typing import Any

from torch import nn

from whence.lrp.engine.weight_cache import WeightCache
from whence.lrp.rules.composites import Composite, Matcher, Selector
from whence.lrp.rules.rules import Rule
from whence.lrp.torch_compat.module_tracker import ModuleOutline


class PreparedModel:
    """A model prepared for explanations.

    Args:
        model: Any callable made of torch functions.
        lasting: Whether modified weights are cached for later explanations, at the cost of their memory.
    """

    def __init__(self, model: Any, lasting: bool = False):
        self.model = model
        # weights that each pass loads anew, which a cache would hold in memory
        self.offloaded = isinstance(model, nn.Module) and any(weight.is_meta for weight in model.parameters())
        self.kept = WeightCache(lasting and not self.offloaded)
        self.guarded = True  # whether saved tensors are guarded against in-place operations, which most networks do not use
        self._outline: ModuleOutline | None = None  # made on demand: opaque models have none, and not all methods need one
        self._matchers: dict[int, tuple[object, Matcher]] = {}

    @property
    def outline(self) -> ModuleOutline:
        if self._outline is None:
            self._outline = ModuleOutline(self.model)
        return self._outline

    def up_to_date(self) -> "PreparedModel":
        """Return itself, after dropping an outline that does not match the model's current modules."""
        if self._outline is not None and self._outline.outdated:
            self._outline = None
        return self

    def for_several(self) -> "PreparedModel":
        """Return a copy with a persistent cache, for several backward passes that need the same modified weights."""
        if self.kept.lasting or self.offloaded:
            return self
        lasting = copy(self)
        lasting._outline = self.outline
        lasting.kept = WeightCache()
        return lasting

    def matcher(self, rules: Mapping[Selector, Rule] | Composite) -> Matcher:
        """Return the matcher of these rules, which caches its decisions."""
        _, matcher = self._matchers.setdefault(id(rules), (rules, Matcher(Composite.of(rules))))
        return matcher
