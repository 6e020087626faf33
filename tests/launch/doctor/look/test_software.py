"""Digests of files."""

from __future__ import annotations

from pathlib import Path

from maskloom.launch.doctor.look.software import source_digest


def test_source_digests_tell_a_changed_file_and_a_changed_name(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    digests = [source_digest(tmp_path)]
    (tmp_path / "a.py").write_text("2")
    digests.append(source_digest(tmp_path))
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    digests.append(source_digest(tmp_path))
    (tmp_path / "cache.pyc").write_text("x")
    assert len(set(digests)) == 3
    assert source_digest(tmp_path) == digests[-1]
