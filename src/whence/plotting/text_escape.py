"""Escaping of text in figures."""


def escape_mathtext(text: str) -> str:
    """Escape a text for matplotlib, which sets text between two $ as mathematics.

    >>> axis.set_title(escape_mathtext("US$ a year"))
    """
    return text.replace("$", r"\$")
