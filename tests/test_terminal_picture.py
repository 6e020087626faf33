"""tools/terminal_picture.py: what a terminal shows of what a program wrote, and its picture."""

from __future__ import annotations

import sys
from xml.etree import ElementTree

from tools.terminal_picture import Screen, drawn, record


def test_a_screen_wraps_overwrites_erases_and_knows_styles() -> None:
    screen = Screen(columns=6)
    screen.feed("abcdefgh\r\n\x1b[1mbold\x1b[0m\rX\r\nleft\r\x1b[K12\r")
    assert screen.text() == ["abcdef", "gh", "Xold", "12"]
    assert screen.lines[2][:2] == [("X", ""), ("o", "1")]


def test_a_picture_is_xml_that_fits_a_page() -> None:
    screen = record([sys.executable, "-c", "print('a < b\\n\\x1b[33mWARNING\\x1b[0m: c')"], 120, 24, None)
    assert screen.text() == ["a < b", "WARNING: c", ""]
    svg = ElementTree.fromstring(drawn(screen, "program --option", 24))
    assert float(svg.attrib["width"]) <= 980
    words = [part.text for part in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert words == ["$ ", "program --option", "a < b", "WARNING", ": c"]


def test_a_long_command_is_continued_on_the_next_line() -> None:
    screen = record([sys.executable, "-c", "print('done')"], 24, 24, None)
    svg = ElementTree.fromstring(drawn(screen, "program --one 1 --another 2", 24))
    words = [part.text for part in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert words == ["$ ", "program --one 1 \\", "--another 2", "done"]
