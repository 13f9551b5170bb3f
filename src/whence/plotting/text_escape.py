"""Words in pictures."""


def plain(text: str) -> str:
    """As it is written: matplotlib would set what stands between two $ as mathematics.

    >>> axis.set_title(plain("US$ a year"))
    """
    return text.replace("$", r"\$")
