"""What the recipes in configs/ say of themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from maskloom.config_file import load_config
from maskloom.config_tokens import slots_before
from maskloom.progress import tokens
from maskloom.scalars import read_tokens
from tests.recipes import CONFIGS, RECIPES, header

POINTS = ("Reproduces", "Tokens", "Source", "Expect", "Hardware", "Hours", "Differs")
OF_OUR_OWN = {"quickstart", "modernbert_tiny", "regression_bert"}
"""Made for this project's own pages and tests, which say what they are for."""
PUBLISHED = [recipe for recipe in RECIPES if recipe.stem not in OF_OUR_OWN]
EACH = pytest.mark.parametrize("recipe", PUBLISHED, ids=lambda recipe: recipe.stem)


def points(recipe: Path) -> dict[str, str]:
    """Point -> what a recipe says of it."""
    parts = re.split(rf"(?:^|(?<=\. ))({'|'.join(POINTS)}): ", header(recipe))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@EACH
def test_a_recipe_opens_with_what_people_ask(recipe: Path) -> None:
    said = points(recipe)
    assert tuple(said) == POINTS
    assert all(len(text) > 3 for text in said.values())
    assert re.search(r"15 %", said["Expect"]), "losses are stated at the mask rate of the evaluation"
    assert re.search(r"published|derived|FLOP formulas|measured", said["Hours"]), "it says where the hours are from"


@EACH
def test_the_tokens_of_the_phases_are_those_that_the_header_says(recipe: Path) -> None:
    config = load_config(recipe)
    lanes = config.data.lanes or 1
    stated = points(recipe)["Tokens"].strip().removesuffix(".").split(" + ")
    counted = [slots_before((phase,), lanes, phase.steps) for phase in config.phases]
    if len(stated) == 1:
        counted = [sum(counted)]
    assert [tokens(int(read_tokens(text))) for text in stated] == stated  # type: ignore[call-overload]
    for text, count in zip(stated, counted, strict=True):
        assert count == pytest.approx(int(read_tokens(text)), rel=2e-2)  # type: ignore[call-overload]


def test_every_recipe_is_in_the_documentation() -> None:
    page = (CONFIGS.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert {recipe.name for recipe in RECIPES} - {"regression_bert.yaml"} <= set(
        re.findall(r"configs/(\w+\.yaml)", page)
    )
