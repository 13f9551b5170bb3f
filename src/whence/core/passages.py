"""Passages of texts: sentences, paragraphs, and how to find and shorten one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

# the end of a sentence: . ! ? … and their full-width forms, with closing quotes or brackets, before a space or the end; or a
# line break. East Asian full stops need no space after them.
SENTENCE_END = re.compile(r"""[.!?…]+["'”’)\]»]*(?=\s|$)|[。！？｡؟۔]+["”’」』）]*|\n+""")
ABBREVIATIONS = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|e\.g|i\.e|etc|cf|Fig|No|[A-Z])\.$")
PARAGRAPH_END = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Passage:
    """A part of a text, from character `start` to `stop`."""

    text: str
    start: int
    stop: int


def split_sentences(text: str) -> list[Passage]:
    """Return the sentences of a text, without the whitespace around them.

    >>> [s.text for s in split_sentences("Dr. Bell came. 她走了。他没有。")]
    ['Dr. Bell came.', '她走了。', '他没有。']
    """
    ends = [m.end() for m in SENTENCE_END.finditer(text) if not ABBREVIATIONS.search(text[: m.end()])]
    return _between(text, ends)


def split_paragraphs(text: str) -> list[Passage]:
    """Return the paragraphs of a text, which empty lines separate."""
    return _between(text, [m.end() for m in PARAGRAPH_END.finditer(text)])


def spaced_pattern(text: str) -> str:
    """Return a regular expression for a text with any spaces between its words."""
    return r"\s*".join(map(re.escape, text.split()))


def whole_words_pattern(text: str) -> re.Pattern[str]:
    """Return a pattern of a text with any spaces between its words, not within a longer word."""
    words = text.split()
    first, last = (letter.isascii() and letter.isalnum() for letter in (words[0][0], words[-1][-1]))
    return re.compile((r"(?<![A-Za-z0-9])" if first else "") + spaced_pattern(text) + (r"(?![A-Za-z0-9])" if last else ""))


def find_passages(text: str, parts: Sequence[str], anywhere: bool = False) -> list[Passage | None]:
    """Return where parts stand in a text as whole words, each behind those before it; None for other parts.

    With `anywhere`, a part that stands only before them is found there.
    """
    found: list[Passage | None] = []
    after = 0
    for part in parts:
        pattern = whole_words_pattern(part) if isinstance(part, str) and part.strip() else None
        place = pattern and (pattern.search(text, after) or (pattern.search(text) if anywhere else None))
        found.append(None if place is None else Passage(place.group(), *place.span()))
        after = after if place is None else place.end()
    return found


def shorten_line(text: str, length: int) -> str:
    """Return a text in one line of at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def _between(text: str, ends: list[int]) -> list[Passage]:
    found, start = [], 0
    for stop in dict.fromkeys([*ends, len(text)]):
        part = text[start:stop]
        if part.strip():
            first = start + len(part) - len(part.lstrip())
            found.append(Passage(part.strip(), first, first + len(part.strip())))
        start = stop
    return found
