"""The documentation of the installed packages as a corpus."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from maskloom.data.sources.documentation import DOCUMENTATION
from maskloom.data.sources.inputs import find_sources, read_source
from maskloom.errors import UserError

from .making import ENGLISH, texts


def test_the_documentation_is_the_english_docstrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    foreign = "Ceci est une documentation qui est longue et détaillée pour être ignorée. " * 5
    (tmp_path / "good.py").write_text(
        f'"""{ENGLISH}module"""\nclass A:\n    """{ENGLISH}class"""\n    def f(self):\n        """{ENGLISH}method"""\n'
        f'async def g():\n    """{ENGLISH}function"""\ndef short():\n    """Short."""\n'
        f'def other():\n    """{foreign}"""\n',
        encoding="utf-8",
    )
    (tmp_path / "template.py").write_text("def {{ name }}(:", encoding="utf-8")
    (tmp_path / "zeros.py").write_bytes(b"\0\0")
    assert sorted(text.split()[-1] for text in texts(DOCUMENTATION)) == ["class", "function", "method", "module"]


def test_documentation_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.py").write_text(f'"""{ENGLISH}"""')
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    (source,) = find_sources([DOCUMENTATION])
    assert len(list(read_source(source, "text", "file"))) == 1
    (tmp_path / "c.py").write_text("")
    with pytest.raises(UserError, match=r"changed while it was read: .* then 0 bytes of Python"):
        list(read_source(source, "text", "file"))


def test_a_place_without_python_files_has_no_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    with pytest.raises(UserError, match="no Python file is installed"):
        find_sources([DOCUMENTATION])
