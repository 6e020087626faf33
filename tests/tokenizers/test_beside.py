"""What stands beside a vocabulary, if it is damaged. `test_wordpiece` and `test_merges` have what it means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskloom.errors import UserError
from maskloom.tokenizers.beside import added_beside, check_roles
from maskloom.tokenizers.roles import SETTINGS, SPECIALS


def test_roles_are_looked_at_in_each_file(tmp_path: Path) -> None:
    file, roles = tmp_path / "vocab.json", {"mask_token": "<mask>"}
    check_roles(file, roles)
    (tmp_path / SETTINGS).write_text('{"mask_token": {"content": "<mask>"}, "pad_token": "x"}')
    check_roles(file, roles)
    (tmp_path / SPECIALS).write_text('{"mask_token": "[MASK]"}')
    with pytest.raises(UserError, match=rf"{SPECIALS} has mask_token '\[MASK\]': of a vocab\.json it has to be <mask>"):
        check_roles(file, roles)
    check_roles(file, roles, [SETTINGS])


@pytest.mark.parametrize("listed", [3, "[P]", True])
@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
def test_tokens_that_are_no_list_are_refused(key: str, listed: object, tmp_path: Path) -> None:
    (tmp_path / SPECIALS).write_text(json.dumps({key: listed}))
    for settings, said in (({}, {key: listed}), ({key: listed}, {})):
        (tmp_path / SPECIALS).write_text(json.dumps(said))
        with pytest.raises(UserError, match=f"{key} is {listed!r}, not a list of tokens".replace("[", r"\[")):
            added_beside(tmp_path / "vocab.txt", settings, {}, ["[MASK]"])
