"""What an explanation needs and no input changes: the modules of the model, which rule where, modified weights."""

from collections.abc import Mapping
from copy import copy
from typing import Any

from whence.lrp.engine.weight_cache import WeightCache
from whence.lrp.rules.composites import Composite, Matcher, Selector
from whence.lrp.rules.rules import Rule
from whence.lrp.torch_compat.module_tracker import ModuleOutline


class PreparedModel:
    """A model made ready. `lasting`: modified weights are kept for later explanations, at the memory they take."""

    def __init__(self, model: Any, lasting: bool = False):
        self.model = model
        self.kept = WeightCache(lasting)
        self.guarded = True  # what autograd saves, from being overwritten: most networks turn out not to
        self._outline: ModuleOutline | None = None  # of what cannot be seen into there is none, nor do all methods need one
        self._matchers: dict[int, tuple[object, Matcher]] = {}

    @property
    def outline(self) -> ModuleOutline:
        if self._outline is None:
            self._outline = ModuleOutline(self.model)
        return self._outline

    def up_to_date(self) -> "PreparedModel":
        """Itself, once it knows the modules that the model has now."""
        if self._outline is not None and self._outline.outdated:
            self._outline = None
        return self

    def for_several(self) -> "PreparedModel":
        """For several ways back from one forward pass, which all need the same modified weights."""
        if self.kept.lasting:
            return self
        lasting = copy(self)
        lasting._outline = self.outline
        lasting.kept = WeightCache()
        return lasting

    def matcher(self, rules: Mapping[Selector, Rule] | Composite) -> Matcher:
        """One for the same rules, which it remembers its decisions by."""
        _, matcher = self._matchers.setdefault(id(rules), (rules, Matcher(Composite.of(rules))))
        return matcher
