"""An explanation as one self-contained HTML page."""

from base64 import b64encode

from jinja2 import Environment, PackageLoader, select_autoescape

from whence.explanation import Explanation, described, tensors
from whence.show import heatmaps, tokens


def page(explanation: "Explanation") -> str:
    """The page: the account of each sample, the picture, and where relevance was absorbed."""
    templates = Environment(loader=PackageLoader("whence.show"), autoescape=select_autoescape())
    account = explanation.conservation
    amounts = {"output": account.output} | account.parts | ({"relative error": account.error} if account.adds_up else {})
    columns = [column.tolist() for column in amounts.values()]
    samples = zip(explanation.target_names(), zip(*columns, strict=True), strict=True)
    layers = sorted(account.by_layer.items(), key=lambda item: -float(item[1].abs().sum()))
    return templates.get_template("explanation.html").render(
        method=described(explanation.method),
        parts=list(account.parts) if account.adds_up else [],
        headings=list(amounts),
        samples=list(samples),
        layers=[(name, amount.tolist()) for name, amount in layers],
        texts=_texts(explanation),
        picture=b64encode(heatmaps.png(heatmaps.figure(explanation))).decode() if _has_pictures(explanation) else None,
    )


def _has_pictures(explanation: "Explanation") -> bool:
    return not explanation.tokens or any(t.is_floating_point() for t in tensors(explanation.inputs).values())


def _texts(explanation: "Explanation") -> list[tuple[str, list]]:
    """The texts of each sample as styled tokens."""
    relevance, names = tensors(explanation.relevance), explanation.target_names()
    return [
        (names[i], tokens.styled(rows[i], relevance[name][i].flatten().float().cpu()))
        for i in range(len(explanation))
        for name, rows in explanation.tokens.items()
    ]
