"""Escaping and shortening of text in figures."""

from whence.plotting.fonts import escape_missing


def escape_mathtext(text: str) -> str:
    """Escape a text for matplotlib, which sets text between two $ as mathematics and draws a box for what its fonts lack.

    >>> axis.set_title(escape_mathtext("US$ a year"))
    """
    return escape_missing(text).replace("$", r"\$")


def shorten_middle(text: str, length: int = 40) -> str:
    """Return a text of at most `length` characters, cut in the middle: names of columns often differ at their ends.

    >>> shorten_middle("number_of_children_in_household_2019", 20)
    'number_of_…hold_2019'
    """
    if len(text) <= length:
        return text
    front = length // 2
    return f"{text[:front]}…{text[front + 1 - length :]}"
