"""Words that ids tell agree with BERT's own words on real text, for kinds whose tokens do not say that a word continues.

The agreement is the share of tokens whose word begins and ends at the same tokens as BERT's word does. BERT has no words of
blanks, so tokens of blanks alone are left out.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from maskloom.data.sources.inputs import find_sources, read_source
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.training import train_tokenizer
from maskloom.tokenizers.words import CHINESE, class_of

CHARS = 400_000
CHINESE_TEXT = """
河流从山上流下来，经过村庄和城市，最后流入大海。春天的时候，河边的树开始长出新的叶子，孩子们在草地上放风筝。老人坐在桥边钓鱼，他们
已经认识很多年了。夏天雨水很多，河水有时会漫过道路，所以人们在两岸修了高高的堤坝。秋天，农民收获水稻和玉米，市场里到处都是新鲜的水
果。冬天虽然寒冷，但是河面很少结冰，船还可以照常航行。一位老师带着学生来到这里，讲解水是怎样变成云，云又怎样变成雨的。学生们认真地记
笔记，并且提出了许多有趣的问题：为什么海水是咸的？为什么月亮会影响潮汐？老师说，科学就是从这样的问题开始的。后来，他们参观了一座小
型水电站。工程师介绍说，这座电站建于1986年，每年可以发电大约3500万度，足够附近两个镇使用。参观结束以后，大家在河边吃午饭，讨论今天
学到的东西。计算机也可以学习语言：先读很多文章，然后猜出被遮住的词语。如果猜对了，它就变得更聪明一点；如果猜错了，它会调整自己的参
数。这种方法叫做“掩码语言模型”，在2018年由研究人员提出，现在已经用于翻译、搜索和问答。
"""
GERMAN_TEXT = """
Der Fluss entspringt in den Bergen und fließt an Dörfern und Städten vorbei, bis er schließlich das Meer erreicht. Im Frühling
treiben die Bäume am Ufer neue Blätter, und die Kinder lassen auf der Wiese Drachen steigen. Zwei ältere Männer sitzen an der
Brücke und angeln; sie kennen sich seit über vierzig Jahren. Im Sommer regnet es häufig, weshalb man auf beiden Seiten hohe
Dämme gebaut hat. „Früher“, erzählt der eine, „stand das Wasser manchmal bis zur Kirchentür.“ Heute gibt es dort ein kleines
Kraftwerk, das 1986 eröffnet wurde und ungefähr 3500 Haushalte versorgt. Größere Schiffe fahren hier nicht, aber im Herbst
bringen Lastkähne Äpfel, Kürbisse und Getreide in die Stadt. Die Schülerinnen und Schüler schreiben auf, was sie gesehen haben.
"""
LEAST = {
    "byte-bpe": {"English": 0.91, "German": 0.95, "Chinese": 0.97},
    "unigram": {"English": 0.89, "German": 0.92},
}
"""Kind -> language -> what has to be reached. Unigram makes pieces of clauses, if all of its Chinese is one page."""


@functools.cache
def documentation() -> list[str]:
    """English, with much code, of the packages that are installed here."""
    texts, chars = [], 0
    for source in find_sources(["documentation:"]):
        for _, text in read_source(source, "text", "file"):
            texts.append(text)
            chars += len(text)
            if chars > CHARS:
                return texts
    return texts


@functools.cache
def trained(kind: str) -> Tokenizer:
    return train_tokenizer([*documentation(), *[CHINESE_TEXT, GERMAN_TEXT] * 4], 4096, kind=kind)


def words_of_bert(text: str) -> list[int]:
    """For each character the number of the word that BERT's pre-tokenizer has it in, Chinese characters alone; -1: none."""
    words, count = [-1] * len(text), 0
    for _, (start, end) in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text):
        for place in range(start, end):
            is_chinese = class_of(text[place]) == CHINESE
            if place == start or is_chinese or class_of(text[place - 1]) == CHINESE:
                count += 1
            words[place] = count
    return words


def borders(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last place of each place's number in a sorted array."""
    return np.searchsorted(numbers, numbers, "left"), np.searchsorted(numbers, numbers, "right")


def compare(tokenizer: Tokenizer, texts: list[str]) -> tuple[float, float]:
    """The agreement, and how many times as many tokens a token's word has on average as its word of BERT."""
    same, sizes, their_sizes = [], [], []
    for text in texts:
        found = tokenizer._whole.encode(text, add_special_tokens=False)
        ids, words = np.array([found.ids], np.int32), words_of_bert(text)
        begins = tokenizer.starts_word(ids, np.zeros(ids.shape, bool))[0]
        inner = [[number for number in words[start:end] if number >= 0] for start, end in found.offsets]
        kept = np.array([bool(numbers) for numbers in inner], bool)
        ours = np.cumsum(begins)[kept]
        theirs = [numbers for numbers in inner if numbers]
        news = [after[0] != before[-1] for before, after in itertools.pairwise(theirs)]
        (first, last), (their_first, their_last) = borders(ours), borders(np.cumsum([False, *news])[: len(ours)])
        same.append((first == their_first) & (last == their_last))
        sizes.append(last - first)
        their_sizes.append(their_last - their_first)
    return float(np.concatenate(same).mean()), float(np.concatenate(sizes).mean() / np.concatenate(their_sizes).mean())


@pytest.mark.parametrize(("kind", "language"), [(kind, language) for kind in LEAST for language in LEAST[kind]])
def test_words_agree_with_berts(kind: str, language: str) -> None:
    texts = {"English": documentation()[::8], "German": [GERMAN_TEXT], "Chinese": [CHINESE_TEXT]}[language]
    agreement, size = compare(trained(kind), texts)
    assert agreement >= LEAST[kind][language]
    assert 0.8 < size < 1.25
