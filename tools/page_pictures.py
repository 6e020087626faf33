"""The badges of README.md, as SVG files in docs/images. Each says what a file of the repository says.

python tools/page_pictures.py            writes them; a test compares them with the files that they are made from
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
LETTER = 6.6
"""Mean width of a letter of 11 px in the fonts below, in px."""

BADGE = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" aria-label="{name}: {text}">
<title>{name}: {text}</title>
<clipPath id="r"><rect width="{width}" height="20" rx="3"/></clipPath>
<g clip-path="url(#r)"><rect width="{left}" height="20" fill="#444c56"/>\
<rect x="{left}" width="{right}" height="20" fill="{colour}"/></g>
<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
<text x="{left_middle}" y="14" textLength="{left_text}">{name}</text>
<text x="{right_middle}" y="14" textLength="{right_text}">{text}</text>
</g>
</svg>
"""


def facts() -> dict[str, tuple[str, str, str]]:
    """File name -> what stands left, what stands right, and the colour."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pythons = [line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r":: 3\.\d+$", line)]
    version = re.search(r'__version__ = "(.+)"', (ROOT / "src/maskloom/__init__.py").read_text())
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert version
    return {
        "badge-version": ("version", version[1], "#3f51b5"),
        "badge-python": ("python", " | ".join(pythons), "#3f51b5"),
        "badge-torch": ("torch", pins["torch"], "#3f51b5"),
        "badge-deepspeed": ("DeepSpeed", pins["deepspeed"], "#3f51b5"),
        "badge-license": ("license", project["license"], "#2e7d32"),
        "badge-tests": ("tested on", "CPUs, ssh, Slurm", "#2e7d32"),
    }


def badge(name: str, text: str, colour: str) -> str:
    left_text, right_text = round(LETTER * len(name)), round(LETTER * len(text))
    left, right = left_text + 12, right_text + 12
    return BADGE.format(
        name=escape(name),
        text=escape(text),
        colour=colour,
        width=left + right,
        left=left,
        right=right,
        left_middle=left / 2,
        right_middle=left + right / 2,
        left_text=left_text,
        right_text=right_text,
    )


def main() -> None:
    for name, fact in facts().items():
        (IMAGES / f"{name}.svg").write_text(badge(*fact))


if __name__ == "__main__":
    main()
