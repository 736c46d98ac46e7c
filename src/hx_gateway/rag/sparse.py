"""Texts as weighted terms, so that a store's sum over common terms is the BM25 score of a document for a query."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter
from functools import lru_cache

from hx_gateway.rag.points import MOST_TERMS, TERMS_END, Terms

K1, B = 1.5, 0.75
AVERAGE = 100.0  # terms of a usual chunk, without stop words: fixed, so that a weight never depends on what else is kept
_WORD = re.compile(r"[^\W_]+")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff]+")  # written without blanks between words
_LONGEST = 64
_STOP = frozenset(
    "a an and any are as at be been between but by can could do does for from had has have he how i if in into is it its may me must my no not of on or "
    "our she should such than that the their then there these they this to very was we were what when where which who why will with would you your us also".split()
)
_SECOND = dict(
    pair.split(":")
    for pair in (
        "ational:ate tional:tion enci:ence anci:ance izer:ize abli:able alli:al entli:ent eli:e ousli:ous ization:ize ation:ate "
        "ator:ate alism:al iveness:ive fulness:ful ousness:ous aliti:al iviti:ive biliti:ble"
    ).split()
)
_THIRD = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
_FOURTH = dict.fromkeys("al ance ence er ic able ible ant ement ment ent ion ou ism ate iti ous ive ize".split(), "")


def document_terms(text: str) -> Terms | None:
    """The terms of a chunk, each weighted by how often it is there, damped by the length of the chunk; None without any."""
    counts = Counter(_words(text))
    scale = K1 * (1 - B + B * sum(counts.values()) / AVERAGE)
    return _terms({term: count * (K1 + 1) / (count + scale) for term, count in counts.items()})


def query_terms(text: str) -> Terms | None:
    """The terms of a query; the store weighs each by how rare it is. None without any."""
    return _terms(dict(Counter(_words(text))))


def _terms(weights: dict[str, float] | dict[str, int]) -> Terms | None:
    found: dict[int, float] = {}
    for term, weight in weights.items():
        number = zlib.crc32(term.encode()) % TERMS_END
        found[number] = found.get(number, 0.0) + weight
    heaviest = sorted(found, key=lambda number: -found[number])[:MOST_TERMS]
    return Terms(sorted(heaviest), [found[number] for number in sorted(heaviest)]) if found else None


def _words(text: str) -> list[str]:
    words: list[str] = []
    for word in _WORD.findall(unicodedata.normalize("NFKC", text).lower()):
        if word.isascii():
            if word not in _STOP:
                words.append(stem(word[:_LONGEST]))
        elif run := _UNSPACED.search(word):
            signs = run.group()
            words += [signs[place : place + 2] for place in range(max(1, len(signs) - 1))]
            words += [part[:_LONGEST] for part in _UNSPACED.split(word) if part]
        else:
            words.append(word[:_LONGEST])
    return words


@lru_cache(maxsize=1 << 15)
def stem(word: str) -> str:
    """An English word without its endings, by Porter's algorithm of 1980; a word of another language loses little.

    Args:
        word: ASCII, lower case.
    """
    if len(word) < 3 or not word.isalpha():
        return word
    if word.endswith(("sses", "ies")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    word = _past(word)
    if word.endswith("y") and "v" in _shape(word[:-1]):
        word = word[:-1] + "i"
    word = _replaced(_replaced(word, _SECOND, 0), _THIRD, 0)
    word = _replaced(word, _FOURTH, 1)
    if word.endswith("e"):
        rest = word[:-1]
        measure = _measure(rest)
        if measure > 1 or (measure == 1 and not _short(rest)):
            word = rest
    return word[:-1] if word.endswith("ll") and _measure(word) > 1 else word


def _past(word: str) -> str:
    """Without -ed and -ing."""
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for ending in ("ed", "ing"):
        rest = word.removesuffix(ending)
        if rest != word and "v" in _shape(rest):
            if rest.endswith(("at", "bl", "iz")):
                return rest + "e"
            if rest[-2:-1] == rest[-1] and _shape(rest)[-1] == "c" and rest[-1] not in "lsz":
                return rest[:-1]
            return rest + "e" if _measure(rest) == 1 and _short(rest) else rest
    return word


def _replaced(word: str, endings: dict[str, str], least: int) -> str:
    """With its longest ending of these replaced, if what is before it has a measure above ``least``."""
    for length in range(min(7, len(word)), 1, -1):
        ending = word[-length:]
        if ending in endings:
            rest = word[:-length]
            if _measure(rest) > least and (ending != "ion" or rest.endswith(("s", "t"))):
                return rest + endings[ending]
            return word
    return word


def _shape(word: str) -> str:
    """Its letters as v (vowel) and c (consonant); y is a vowel after a consonant."""
    shape = ""
    for letter in word:
        shape += "v" if letter in "aeiou" or (letter == "y" and shape.endswith("c")) else "c"
    return shape


def _measure(word: str) -> int:
    """How often vowels are followed by consonants."""
    return _shape(word).count("vc")


def _short(word: str) -> bool:
    """Whether it ends with consonant, vowel and consonant, the last not w, x or y."""
    return _shape(word)[-3:] == "cvc" and word[-1] not in "wxy"
