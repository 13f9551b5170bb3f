"""Texts in figures: words that stay whole, characters that no font has, and legends of the colours."""

import warnings

import pytest
import torch

import whence
from whence.plotting import fonts
from whence.plotting.fonts import escape_missing
from whence.plotting.stacked_panels import stack_panels
from whence.plotting.text_escape import escape_mathtext
from whence.plotting.token_text import CHARACTERS, TokenText, cells, printable, token_grid, wrap_lines


def test_lines_break_between_words():
    labels = [" wor", "d"] * 40
    lines = wrap_lines(labels)
    assert len(lines) > 1
    assert all(labels[line[0][0]].startswith(" ") for line in lines)
    assert sorted(i for line in lines for i, _ in line) == list(range(80))
    assert all(column + cells(printable(labels[i])) <= CHARACTERS for line in lines for i, column in line)


def test_a_word_longer_than_a_line_is_broken():
    lines = wrap_lines(["x"] * (2 * CHARACTERS))
    assert [len(line) for line in lines] == [CHARACTERS, CHARACTERS]


def test_wide_characters_take_two_cells():
    assert [cells(text) for text in ("ab", "漢字", "e\u0301", "")] == [2, 4, 1, 0]


def test_characters_that_no_font_has_are_their_codes(monkeypatch):
    monkeypatch.setattr(fonts, "installed_fallbacks", tuple)
    assert escape_missing("the 猫") == "the \\u732b"
    assert escape_mathtext("Größe: 5 €") == r"Größe: 5 €"
    assert escape_mathtext("US$ 猫") == r"US\$ \u732b"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of matplotlib about missing glyphs
        stack_panels([TokenText(["猫", " and", " dog"], torch.tensor([1.0, 0.5, -1.0]), "the 猫")]).canvas.draw()
        token_grid(["猫"], ["the", "猫"], torch.tensor([[1.0, -0.5]]), "猫").canvas.draw()


@pytest.mark.parametrize(("colors", "legend"), [("red-blue", "red: for, blue: against"),
                                                ("orange-purple", "orange: for, purple: against")])  # fmt: skip
def test_figures_say_what_the_colours_mean(colors, legend):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)).eval()
    with whence.palette(colors):
        e = whence.explain(net, torch.rand(1, 1, 8, 8), 1)
        titles = [axis.get_title() for axis in e.figure().subfigs[0].axes]
        text = stack_panels([TokenText(["a", " b"], torch.tensor([1.0, -1.0]), "t")])
    assert f"relevance ({legend})" in titles
    assert legend in text.subfigs[0].axes[0].get_title(loc="left")
