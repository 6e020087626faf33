"""A picture of a program in a terminal: run it in one, wait for a line, and draw the screen as SVG.

    python tools/terminal_picture.py --until '^training .* 1[34][0-9]/200 ' OUT.svg maskloom train CONFIG phases.0.steps=200

The program runs in a pseudo-terminal. When its newest line matches --until, the screen is drawn, and the program gets a Ctrl-C.
Without --until its last screen is drawn. The folder that it runs in is shown as ~/maskloom. Text
stays text, in whatever monospace font the reader has.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import html
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

COLUMN_PX, LINE_PX, FONT_PX, MARGIN_PX, BAR_PX = 7.8, 19, 13, 16, 30
BACKGROUND, BAR, TEXT, PROMPT = "#1b1f27", "#2a303b", "#d5dae3", "#7fd1a1"
COLORS = {"33": "#e8c268", "31": "#f08a84"}
FONTS = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"
PART = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)|\x1b")


@dataclass
class Screen:
    """What a terminal shows: lines of (character, style), where a style is a number of an escape sequence, or ''."""

    columns: int
    lines: list[list[tuple[str, str]]] = field(default_factory=lambda: [[]])
    column: int = 0
    style: str = ""

    def feed(self, text: str) -> None:
        """Take what a program wrote. Sequences other than styles and `erase to the end of the line` change nothing."""
        for arguments, command, control, words in PART.findall(text):
            if command == "m":
                self.style = "" if arguments in ("", "0") else arguments
            elif command == "K":
                del self.lines[-1][self.column :]
            elif control == "\r":
                self.column = 0
            elif control:
                self._next_line()
            for character in words:
                if self.column == self.columns:
                    self._next_line()
                    self.column = 0
                line = self.lines[-1]
                line += [(" ", "")] * (self.column - len(line))
                line[self.column : self.column + 1] = [(character, self.style)]
                self.column += 1

    def _next_line(self) -> None:
        self.lines.append([])

    def text(self) -> list[str]:
        """The lines without styles."""
        return ["".join(character for character, _ in line) for line in self.lines]


def record(command: list[str], columns: int, rows: int, until: str | None) -> Screen:
    """Run a command in a terminal. Returns its screen, at the end or when a line matches `until`."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    screen, came = Screen(columns), b""
    with subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, env=environment, start_new_session=True
    ) as process:
        os.close(its)
        with contextlib.suppress(OSError):  # its end is closed
            while part := os.read(ours, 65536):
                came += part
                whole = came.decode(errors="ignore")  # a character may be cut in two
                screen.feed(whole.replace(str(Path.cwd()), "~/maskloom"))
                came = came[len(whole.encode()) :]
                if until and re.search(until, screen.text()[-1]):
                    process.send_signal(2)
                    with contextlib.suppress(OSError):
                        while os.read(ours, 65536):
                            pass
                    break
        os.close(ours)
    return screen


def drawn(screen: Screen, shown: str, rows: int) -> str:
    """The last lines of a screen as SVG, below the command that was typed."""
    typed = textwrap.wrap(shown, screen.columns - 4, break_on_hyphens=False)
    typed = [f"{line} \\" for line in typed[:-1]] + typed[-1:]
    command = [[("$ " if not place else "  ", PROMPT, False), (line, TEXT, False)] for place, line in enumerate(typed)]
    lines = [*command, *map(_runs, screen.lines[-rows:])]
    width, height = screen.columns * COLUMN_PX + 2 * MARGIN_PX, BAR_PX + len(lines) * LINE_PX + 2 * MARGIN_PX
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}" '
        f'font-family="{FONTS}" font-size="{FONT_PX}" role="img">',
        f"<title>{html.escape(shown)}</title>",
        f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>',
        f'<path d="M0 {BAR_PX}V8a8 8 0 0 1 8-8H{width - 8:g}a8 8 0 0 1 8 8V{BAR_PX}z" fill="{BAR}"/>',
    ]
    parts += [
        f'<circle cx="{18 + 18 * place}" cy="{BAR_PX / 2:g}" r="5" fill="{color}"/>'
        for place, color in enumerate(("#ee6a5f", "#f5bd4f", "#61c454"))
    ]
    for number, line in enumerate(lines):
        y, column = BAR_PX + MARGIN_PX + number * LINE_PX + FONT_PX, 0
        for text, color, is_bold in line:
            if text.strip():
                weight = ' font-weight="bold"' if is_bold else ""
                parts.append(
                    f'<text x="{MARGIN_PX + column * COLUMN_PX:.1f}" y="{y}" fill="{color}"{weight} xml:space="preserve" '
                    f'textLength="{len(text) * COLUMN_PX:.1f}" lengthAdjust="spacingAndGlyphs">{html.escape(text)}</text>'
                )
            column += len(text)
    return "\n".join([*parts, "</svg>", ""])


def _runs(line: list[tuple[str, str]]) -> list[tuple[str, str, bool]]:
    """(text, colour, bold) of the parts of a line that look alike."""
    runs: list[tuple[str, str, bool]] = []
    for character, style in line:
        color, is_bold = COLORS.get(style, TEXT), style == "1"
        if runs and runs[-1][1:] == (color, is_bold):
            runs[-1] = (runs[-1][0] + character, color, is_bold)
        else:
            runs.append((character, color, is_bold))
    return runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--until", help="a regular expression that a line matches when the picture is taken")
    parser.add_argument("--columns", type=int, default=120)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--shown", help="the command line of the picture (default: the command's own)")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    screen = record(options.command, options.columns, options.rows, options.until)
    options.out.write_text(drawn(screen, options.shown or shlex.join(options.command), options.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
