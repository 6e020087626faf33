"""What the reports share: wrapped prose, and plots as SVG without a library."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH = 120
COLOURS = ("#1f6feb", "#d1495b", "#2e8b57", "#8a5cd1", "#c77d0a", "#6b7280", "#0f766e", "#a3a3a3", "#9f1239", "#475569")


def wrapped(line: str) -> str:
    """Prose at 120 characters a line; tables stay as they are."""
    if len(line) <= WIDTH or line.startswith(("|", "![")):
        return line
    indent = len(line) - len(line.lstrip(" "))
    hanging = indent + 2 if line.lstrip().startswith("- ") else indent
    return textwrap.fill(
        line,
        WIDTH,
        subsequent_indent=" " * hanging,
        break_on_hyphens=False,
        break_long_words=False,
        drop_whitespace=True,
    )


def draw_bars(
    file: Path, title: str, groups: Sequence[tuple[str, Sequence[tuple[str, float]]]], left: int = 120, digits: int = 2
) -> None:
    """Horizontal bars, each group on a scale of its own; maskloom's in colour.

    Args:
        left: where they begin: the room for their names.
        digits: after the point, of the values.
    """
    parts, y = [_text(10, 22, title, 15)], 50
    scale = 560 - left
    for group, bars in groups:
        parts.append(_text(10, y, group, 13))
        most = max([value for _, value in bars] or [1.0]) or 1.0
        for name, value in bars:
            y += 24
            colour = COLOURS[0] if name.startswith("maskloom") else COLOURS[5]
            parts.append(_text(20, y + 4, name, 12))
            parts.append(_box(left, y - 9, scale * value / most, colour))
            parts.append(_text(left + 6 + scale * value / most, y + 4, f"{value:,.{digits}f}", 12))
        y += 40
    _svg(file, 640, y - 10, parts)


def draw_stacks(
    file: Path, title: str, names: Sequence[str], groups: Sequence[tuple[str, Sequence[tuple[str, Sequence[float]]]]]
) -> None:
    """Horizontal bars of parts one after the other, each group on a scale of its own.

    Args:
        names: of the parts, for the legend.
        groups: title, and bars of (name, value of each part).
    """
    parts, y, left = [_text(10, 22, title, 15)], 44, 150
    for number, name in enumerate(names):
        x, y = 10 + 205 * (number % 3), 44 + 18 * (number // 3)
        parts += [_box(x, y - 10, 12, COLOURS[number], 12), _text(x + 18, y, name, 12)]
    y += 34
    for group, bars in groups:
        parts.append(_text(10, y, group, 13))
        most = max([sum(values) for _, values in bars] or [1.0]) or 1.0
        for name, values in bars:
            y += 24
            parts.append(_text(20, y + 4, name, 12))
            x = float(left)
            for number, value in enumerate(values):
                width = 410 * value / most
                parts.append(_box(x, y - 9, width, COLOURS[number]))
                x += width
            parts.append(_text(x + 6, y + 4, f"{sum(values):,.1f}", 12))
        y += 40
    _svg(file, 640, y - 10, parts)


def draw_lines(
    file: Path,
    title: str,
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    bottom: float = 0.0,
    digits: int = 0,
) -> None:
    """Lines over an axis from 0.

    Args:
        bottom: of the other axis.
        digits: after the point, of that axis.
    """
    width, height, left, top = 640, 300, 60, 40
    most_x = max((x for _, points in lines for x, _ in points), default=1) or 1
    most_y = bottom + 1.2 * (max((y for _, points in lines for _, y in points), default=bottom + 1) - bottom)
    parts = [_text(10, 22, title, 15)]
    inner_w, inner_h = width - left - 20, height - top - 30
    for tick in range(5):
        y = top + inner_h * (1 - tick / 4)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{width - 20}" y2="{y:.1f}" stroke="#d0d0d0"/>')
        parts.append(_text(8, y + 4, f"{bottom + (most_y - bottom) * tick / 4:,.{digits}f}", 11))
        parts.append(_text(left + inner_w * tick / 4 - 12, height - 10, f"{most_x * tick / 4:,.0f}", 11))
    for number, (name, points) in enumerate(lines):
        path = " ".join(
            f"{left + inner_w * x / most_x:.1f},{top + inner_h * (1 - (y - bottom) / (most_y - bottom)):.1f}"
            for x, y in points
        )
        parts.append(f'<polyline fill="none" stroke="{COLOURS[number]}" stroke-width="2" points="{path}"/>')
        parts.append(_text(left + 20 + 120 * number, top + 14, name, 12, COLOURS[number]))
    _svg(file, width, height, parts)


def _text(x: float, y: float, text: str, size: int, colour: str = "#444444") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-family="sans-serif" font-size="{size}" fill="{colour}">{escape(text)}</text>'


def _box(x: float, y: float, width: float, colour: str, height: int = 16) -> str:
    return f'<rect x="{x:g}" y="{y}" width="{width:.1f}" height="{height}" fill="{colour}"/>'


def _svg(file: Path, width: int, height: int, parts: Sequence[str]) -> None:
    box = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    file.write_text(
        "\n".join([f"<svg {box}>", f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>\n"])
    )
