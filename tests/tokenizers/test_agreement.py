"""Words from ids alone agree with BERT's own words of the same text."""

from __future__ import annotations

import ast
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import pre_tokenizers

from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.training import train_tokenizer
from maskloom.tokenizers.unigram import BLANK
from maskloom.tokenizers.words import CHINESE_RANGES

CHINESE = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in CHINESE_RANGES) + "]")
LIBRARY = Path(json.__file__).parent.parent
RIGHTS = """
人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。
人人有资格享受本宣言所载的一切权利和自由，不分种族、肤色、性别、语言、宗教、政治或其他见解、国籍或社会出身、财产、出生或其他身分等任何区别。
人人有权享有生命、自由和人身安全。任何人不得使为奴隶或奴役；一切形式的奴隶制度和奴隶买卖，均应予以禁止。
任何人不得加以酷刑，或施以残忍的、不人道的或侮辱性的待遇或刑罚。人人在任何地方有权被承认在法律前的人格。
法律之前人人平等，并有权享受法律的平等保护，不受任何歧视。
任何人不得加以任意逮捕、拘禁或放逐。
人人完全平等地有权由一个独立而无偏倚的法庭进行公正的和公开的审讯，以确定他的权利和义务并判定对他提出的任何刑事指控。
任何人的私生活、家庭、住宅和通信不得任意干涉，他的荣誉和名誉不得加以攻击。
人人在各国境内有权自由迁徙和居住。人人有权离开任何国家，包括其本国在内，并有权返回他的国家。
人人有权在其他国家寻求和享受庇护以避免迫害。人人有权享有国籍。
成年男女，不受种族、国籍或宗教的任何限制有权婚嫁和成立家庭。家庭是天然的和基本的社会单元，并应受社会和国家的保护。
人人得有单独的财产所有权以及同他人合有的所有权。任何人的财产不得任意剥夺。
人人有思想、良心和宗教自由的权利。人人有权享有主张和发表意见的自由。人人有权享有和平集会和结社的自由。
人人有权工作、自由选择职业、享受公正和合适的工作条件并享受免于失业的保障。
人人有享有休息和闲暇的权利，包括工作时间有合理限制和定期给薪休假的权利。
人人都有受教育的权利，教育应当免费，至少在初级和基本阶段应如此。初级教育应属义务性质。
"""
"""From the Universal Declaration of Human Rights (1948), articles 1 to 26."""


def docstrings() -> list[str]:
    """Of modules of Python's own library."""
    trees = (ast.parse(path.read_bytes()) for path in sorted(LIBRARY.glob("*.py"))[:80])
    documented = (ast.FunctionDef, ast.ClassDef, ast.Module)
    nodes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, documented))
    return [text for node in nodes if (text := ast.get_docstring(node))]


def words_of_bert(text: str) -> np.ndarray:
    """The number of BERT's word at each character: its pre-tokenizer's, and Chinese characters each alone."""
    begins = np.zeros(len(text) + 1, int)
    for _, (start, end) in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text):
        begins[start] = 1
        for found in CHINESE.finditer(text, start, end):
            begins[[found.start(), found.end()]] = 1
    return np.cumsum(begins)


def agreement(tokenizer: Tokenizer, texts: list[str]) -> float:
    """Share of tokens that begin a word where BERT's do. A blank that is a token of its own belongs to what is behind it."""
    encoder = HFTokenizer.from_str(tokenizer.definition)
    encoder.encode_special_tokens = True
    agreed = []
    for text in texts:
        encoding, words = encoder.encode(text, add_special_tokens=False), words_of_bert(text)
        ids = np.array([encoding.ids], np.int32)
        begins = tokenizer.starts_word(ids, np.zeros(ids.shape, bool))[0].tolist()
        last, has_begun = -1, False
        for token, (start, end), begins_here in zip(encoding.tokens, encoding.offsets, begins, strict=True):
            shown = text[start:end]
            has_begun |= begins_here
            if token != BLANK and (bare := shown.strip()):
                first = start + shown.index(bare)
                agreed.append((last < 0 or words[first] != words[last]) == has_begun)
                last, has_begun = first + len(bare) - 1, False
    return float(np.mean(agreed))


@pytest.mark.parametrize(("kind", "english", "chinese"), [("unigram", 0.95, 0.96), ("byte-bpe", 0.91, 0.98)])
def test_words_agree_with_berts(kind: str, english: float, chinese: float) -> None:
    texts = docstrings()
    assert sum(map(len, texts)) > 100_000
    learnt, held_out = (list(itertools.islice(texts, first, None, 2)) for first in (0, 1))
    assert agreement(train_tokenizer(learnt, 6000, kind=kind), held_out) > english
    lines = RIGHTS.strip().splitlines()
    assert agreement(train_tokenizer(lines * 3, 800, kind=kind), lines) > chinese


def test_blanks_alone_do_not_agree() -> None:
    """What the classes bring: without them, Chinese text has hardly a word."""
    lines = RIGHTS.strip().splitlines()
    tokenizer = train_tokenizer(lines * 3, 800, kind="unigram")
    tokenizer._word_rule = lambda tokens, starts: starts
    assert agreement(tokenizer, lines) < 0.5
