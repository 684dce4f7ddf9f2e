"""The published scoring rule of MMAU and MMAR, which compares sets of words.

Let W(t) be the set of words of a text. A prediction is right if and only if W(prediction) is not
empty, W(answer) is a subset of it, and it shares no word with what the other choices have and the
answer has not: the union of W(c) minus W(answer) over the choices c whose words differ from the
answer's. Letters are never read and the reasoning is never removed: whatever the reply says, all of
its words count, in any order.
"""

import re
from collections.abc import Iterable

_WORD = re.compile(r"\w+")


def words_of(text: str) -> frozenset[str]:
    """Returns the maximal runs of word characters (letters, digits, underscore) in lower case."""
    return frozenset(_WORD.findall(text.lower()))


def matches_by_words(prediction: str, answer: str, choices: Iterable[str]) -> bool:
    """Returns whether the published rule calls a prediction right.

    Args:
        prediction: all of the model's text.
        answer: the text of the right choice, as the benchmark ships it.
        choices: the texts of all choices, as the benchmark ships them.
    """
    predicted, right = words_of(prediction), words_of(answer)
    if not predicted or not right <= predicted:
        return False
    others = (words - right for words in map(words_of, choices) if words != right)
    return all(predicted.isdisjoint(words) for words in others)
