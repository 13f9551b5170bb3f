"""Words in pictures."""


def escape_mathtext(text: str) -> str:
    """As it is written: matplotlib would set what stands between two $ as mathematics.

    >>> axis.set_title(plain("US$ a year"))
    """
    return text.replace("$", r"\$")
