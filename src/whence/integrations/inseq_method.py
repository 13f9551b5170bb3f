"""Methods as attribution methods of inseq."""

from whence.core.optional_packages import import_package
from whence.integrations.captum_attribution import Attribution
from whence.methods.registry import Method, resolve_method

_registered: dict[str, type] = {}  # inseq finds the subclasses that are alive


def register_inseq_method(method: Method | str | None = None, name: str | None = None) -> str:
    """Register a method as an attribution method of inseq, and return its name there.

    >>> inseq.load_model("gpt2", whence.adapters.register_inseq_method("lrp")).attribute("The capital of France is")

    inseq explains probabilities by default, whose relevance is that of the logit times a factor near zero for sure tokens;
    `attributed_fn="logit"` explains logits.

    Args:
        method: A method or its name; LRP by default.
        name: Name of the method in inseq; "whence_lrp" for LRP, and so on.

    Returns:
        The name.

    Raises:
        MissingPackageError: inseq is not installed.
    """
    gradient_attribution = import_package("inseq.attr.feat.gradient_attribution")
    resolved = resolve_method(method)
    known = name or f"whence_{resolved.name}"

    class RelevanceAttribution(gradient_attribution.GradientAttributionRegistry):
        """An attribution method of inseq that computes relevance."""

        method_name = known

        def __init__(self, attribution_model, **kwargs):
            super().__init__(attribution_model)
            self.method = Attribution(attribution_model, resolved)

    _registered[known] = RelevanceAttribution
    return known
