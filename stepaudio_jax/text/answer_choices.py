"""Reads which option a reply chooses: a letter, or None if that is not clear."""

import dataclasses
import re
from collections.abc import Iterator, Sequence

from stepaudio_jax.text.answer_markup import (
    boxed_answers,
    normalize_answer,
    strip_markup,
    strip_reasoning,
    unify_characters,
)
from stepaudio_jax.text.answer_options import (
    around_option_list,
    letter_and_text,
    letter_by_ordinal,
    option_alone,
    option_within,
)

# A letter that stands alone: no part of a word (B2, A's, A-flat, C++, F#), of an abbreviation
# (U.S.A.) or of a chord (B:maj). Chinese and Japanese write no spaces around it: 答案是B。
_IN_WORD = r"(?:(?![\u2e80-\u9fff\uac00-\ud7af])\w)"
_LETTER = re.compile(
    rf"(?<![a-zA-Z0-9_À-ɏ.+#&-])(?<![a-zA-Z]')([A-Za-z])(?!{_IN_WORD}|'\w|[+#&]"
    rf"|-{_IN_WORD}|\.\w\.|[.:/][a-z0-9](?![\s.,;)]))"
)
# "A dog", "I think": what follows a letter that is no word. Of other letters it excludes notes and
# keys (B flat, D minor).
_CONTINUES = re.compile(
    r"\s+(?:is|was|as|because|since|for|fits?|seems?|appears?|looks?|sounds?|would|could"
    r"|should|must|can|cannot|has|does|and|or"
    r"|but|not|rather|instead|due|given|based|over|best|matches|describes|corresponds"
    r"|being|if|while|which|where|here|then|so|it"
    r"|in this|of the|from the|to be|with)\b|\s*$|\s*[^\w\s]|\s*\n|\s*[^\x00-\x7f]",
    re.IGNORECASE,
)
_NOTE = re.compile(
    r"\s+(?:flat|sharp|major|minor|natural|maj|min|note|chord|key|string|clef)\b", re.IGNORECASE
)
_ARTICLE_AFTER = re.compile(r"\s+(?:an?|the)\s", re.IGNORECASE)  # "A a dog": the first is a letter

_BE = r"(?:is|was|are|be|being|'s|would be|should be|must be|will be|has to be)"
_SURELY = (
    r"(?:(?:clearly|definitely|certainly|surely|obviously|probably|likely|most|simply"
    r"|therefore|thus|then|indeed|now|actually"
    r"|rather|instead|just|only|best|correct|correctly|either|option|choice|letter"
    r"|answer|the|that|:)\s*)*"
)
_OPEN = r"[\s\"'(\[<>:=\-.→]*$"
# Words before a letter that is the answer: "the answer is", "Answer:", "I choose", 答案是, 选. All
# end where the letter begins.
_ANSWER_IS = re.compile(
    rf"(?:\b(?:answer|ans|response|solution|selection|conclusion)\b\s*(?:[\"']"
    rf"|\([^()]{{0,20}}\))?\s*"
    rf"(?:(?:[^.\n!?:;]{{0,60}}?\b)?{_BE}|[:=\-.]|)\s*{_SURELY}"
    rf"|\b(?:my|the|your)\s+(?:choice|pick|guess|vote)\s*(?:{_BE}|[:=\-])\s*{_SURELY}"
    rf"|\b(?:selected|chosen)\s*[:=]"
    r"|\b(?:correct|right|best|final|chosen|most likely)\s+(?:option|choice|letter|one)\b"
    rf"(?:[^.\n!?:;]{{0,60}}?\b{_BE}|[:=\-])\s*{_SURELY}"
    rf"|\b(?:choose|chose|choosing|pick|picked|select|selected|go with|going with|go for"
    rf"|opt for|settle on|vote for"
    rf"|decide on|stick with|answer with)\s+{_SURELY}"
    r"|(?:答案|答え|正解|正确选项|正确的选项|正确的是|本题|选项|选择|应该选|选|選擇|選|チョイス)"
    r"\s*(?:应该|应当|应|就|最终|为|是|は|选|选择|選|了|项|项是|的是|[\s:=\"'(\[])*"
    rf"|\b(?:respuesta|antwort|réponse|risposta|resposta)\b[^.\n!?:;]{{0,30}}?(?:\bes"
    rf"|\best|\bist|\bè|\bé|:)\s*){_OPEN}",
    re.IGNORECASE,
)
_SUGGESTS = re.compile(
    rf"(?:\b(?:option|choice|letter)\s*[:=]?"
    rf"|\b(?:it|that|this)\s*(?:{_BE})\s*{_SURELY}"
    rf"|\b(?:think|believe|guess|say|conclude|think that)\s+(?:that\s+)?(?:it\s*{_BE}\s*)?{_SURELY}"
    r"|(?:^|[.!?,;\n])\s*(?:definitely|certainly|clearly|surely|obviously|probably"
    r"|most likely|likely|so|hence|thus"
    r"|therefore|then|finally|actually|correct|所以|因此|故|应该是|应为|是|即)\s*[,:]?\s*"
    rf"|(?:而是|应该是|所以是|就是|因此是|(?:觉得|认为|猜|想)(?:应该)?是?)\s*){_OPEN}",
    re.IGNORECASE,
)
# "No, B", "wait, actually B"
_CORRECTS = re.compile(
    rf"\b(?:no\s*[,.:;!]|wait|actually|correction|sorry"
    rf"|i mean)[\s,.:;!]*(?:it\s*{_BE}\s*)?{_SURELY}{_OPEN}",
    re.IGNORECASE,
)
_NOT_BUT = re.compile(
    rf"(?:\bnot\b[^.\n!?;]{{1,40}}?\bbut\s+(?:rather\s+|it's\s+|it is\s+)?|而是\s*){_OPEN}",
    re.IGNORECASE,
)
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|cannot|never|neither|nor|without|except|excluding|exclude|excludes"
    r"|eliminate|eliminates|eliminating|reject"
    r"|discard|than|instead of|opposed to|unlike|ruled? out|ruling out|rules out)\b|n't\b"
    r"|不是|并非|不选|排除|而非|不可能是|不会是|没有)"
    r"(?:(?!\bbut\b|而是)[^.,;!?\n。，；])*$",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"[\s)\].:\"']*(?:(?:is|are|was|would be|seems?|looks?|sounds?|can be|could be"
    r"|may be|has been|does|do|did|can|could)\s+"
    r"(?:\w+\s+){0,2}?(?:not|wrong|incorrect|false|eliminated|excluded|discarded|out"
    r"|unlikely|impossible|ruled out|never)\b"
    r"|(?:is|was|does|do|did|can|could|would|are)n't\b|cannot\b|(?:is )?ruled out"
    r"|不对|不正确|错|是错|不是|可以排除|被排除|不符)",
    re.IGNORECASE,
)
_DENIED_OPTION = re.compile(
    r"[)\].:]+[^\n。;!?]{1,200}?(?:\b(?:is|are)\s+(?:\w+\s+)?(?:incorrect|wrong|false"
    r"|eliminated|ruled out"
    r"|not (?:correct|right|the answer))\b|不对|错误|不正确)",
    re.IGNORECASE,
)
_RIGHT_AFTER = re.compile(
    r"[\s)\]\"'.]*(?:(?:is|was|seems|appears|looks|sounds|would be|must be"
    r"|should be)\s+(?:\w+\s+){0,3}?"
    r"(?:correct|right|best|answer|choice|true|option)\b|fits|matches|describes|是对的|是正确"
    r"|正确|对$|选项|項|项"
    r"|it is\b|is what\b)",
    re.IGNORECASE,
)
_DOUBT_BEFORE = re.compile(
    r"\b(?:if|whether|between|either|could|might|may|maybe|perhaps|possibly|possible"
    r"|tempted|why)\b[^.,;!?\n]*$"
    r"|(?:如果|假如|是否|可能|也许)[^.,;!?\n。，；]*$|\bis\s+(?:it"
    r"|the\s+(?:correct\s+)?answer)\s+(?:option\s+)?[(\"']*$",
    re.IGNORECASE,
)
_DOUBT_AFTER = re.compile(r"[)\]\"']*\s*(?:\?|:?\s*\(?\d+(?:\.\d+)?\s*%)")
_CHANGES = re.compile(
    r"\b(?:wait|actually|no|correction|sorry|on second thoughts?|reconsider\w*|rather"
    r"|instead|however|but"
    r"|finally|final|so|hence|therefore|thus|in conclusion|overall|in the end|ultimately)\b"
    r"|不对|等等|其实|更正|最终|所以|因此|综上|应该是",
    re.IGNORECASE,
)
_JOINS = re.compile(
    r"[)\]\"'\s]*(?:,\s*(?:or|and)\b|,|/|&|\+|、|\bor\b|\band\b|或者|或|和|与|及)[\s(\[\"']*"
)
_REASON = re.compile(
    r"\s+(?:because|since|as|due|given|rather|instead|over|(?:and|but)\s+not|not)\b", re.IGNORECASE
)
_STARTS_WITH = re.compile(r"[\W_]*$")
_ENDS_OPTION = re.compile(r"[\s)\]\"']*(?:$|\n|[.:,;!)\]。、，|]|-+\s|\s-+\s|\s\()")
_LISTED = re.compile(r"[)\]]?[.):\]、]|[)\]]")

_NUMBERED = re.compile(
    r"^\s*(?:Q(?:uestion)?\s?)?\d{1,3}\s*[.):]\s+(?=[(\[]?[A-Za-z](?:[)\].:,\s]|$))", re.MULTILINE
)

_MIN_PRINTED_LETTERS = 4
MAX_CONTEXT = 120  # characters read before a letter
# Ranks of a choice: at the start, alone on a line, "answer is B"; `(B)`, "option B", "it is B".
ANSWERED, SUGGESTED = 2, 1


@dataclasses.dataclass(frozen=True)
class _Mention:
    """Locates a letter that stands alone in a text."""

    letter: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class _Statement:
    """States that letters are chosen (several: it is not clear which), or that they are not."""

    letters: frozenset[str]
    start: int
    end: int
    rank: int
    denied: bool = False


def read_choice(reply: str, choices: Sequence[str | None] | None = None) -> str | None:
    r"""Returns the capital letter of the option that a reply chooses; None if that is not clear.

    What counts, the clearest first:

    * a letter (or an option's text) in `\boxed{..}` or `<answer>..</answer>`;
    * a letter with which the reply starts, that is alone on a line, or that follows "answer is",
      "Answer:", 答案是, 选;
    * a letter in brackets, "option B", "it is B", "B is correct"; an ordinal ("the third option").

    Where the choices are known, their texts count too: alone, then within the reply, then as a
    number. Words are no letters ("A dog", "I think"), nor are notes and chords. What is denied
    ("not A") or doubted ("A?", "if A") is not chosen. Of several letters that are equally clear the
    last is taken only where the reply says that it changes or concludes ("wait, actually", "so");
    otherwise it is unclear. A reasoning (`<think>..</think>`) is no part of the reply; one without
    an end leaves nothing.

    Args:
        reply: of a model; the answer of a record reads in the same way.
        choices: the options' texts in the order of their letters, also as `(A) text`; None or empty
            ones have no letter.
    """
    text = strip_reasoning(reply)
    if text is None:
        return None
    options = None if choices is None else [_option_text(choice) for choice in choices]
    marked = {_read(content, options, alone=True) for content in boxed_answers(text)}
    if marked:
        return marked.pop() if len(marked) == 1 else None
    return _read(text, options)


def _read(text: str, options: list[str] | None, *, alone: bool = False) -> str | None:
    """Returns the choice of a text that holds no box."""
    plain = strip_markup(text)
    if len(_NUMBERED.findall(plain)) == 1:
        plain = _NUMBERED.sub("", plain)
    letter = _sole_letter(plain)
    if options is not None:
        around = around_option_list(plain, options)
        if around is not None:
            before, after = around
            chosen = _read(after, options, alone=alone)
            return _read(f"{before}\n\n{after}", options, alone=alone) if chosen is None else chosen
        letter = _sole_letter(plain) or letter_and_text(plain, options)
        by_text = option_alone(plain, options)
        if by_text is not None and letter in (None, by_text):
            return by_text
        if by_text is not None and letter is not None:
            return None if _may_be_meant(letter, plain, by_text, options) else by_text
    if letter is None:
        statements = list(_statements(plain, options))
        chosen, is_clear = _decide(plain, statements, options)
        if not is_clear:
            return None
        letter = chosen
    if letter is None:
        if options is None:
            return letter_by_ordinal(plain)
        return None if alone else option_within(plain, options)
    if options is None:
        return letter
    by_text = option_alone(letter, options)
    if by_text is not None and not _may_be_meant(letter, plain, by_text, options):
        return by_text if alone else option_within(plain, options)
    return letter if _has_option(options, letter) else None


def _option_text(choice: str | None) -> str:
    """Returns the text of an option without its letter, as benchmarks have it: `(A) Man` is Man."""
    return re.sub(r"^\s*\([A-Z]\)\s*", "", choice or "")


def _has_option(options: list[str], letter: str) -> bool:
    index = ord(letter) - ord("A")
    return index < len(options) and bool(options[index].strip())


def _may_be_meant(letter: str, plain: str, by_text: str, options: list[str]) -> bool:
    """Returns whether a letter that is an option's text may stand for another option.

    It may, unless it is written small only, as that text is, or no letter of a question is so high:
    MMSU's prompt prints four, also where there are two options.
    """
    text = options[ord(by_text) - ord("A")].strip()
    is_capital = re.search(rf"(?<!\w){letter}(?!\w)", plain) is not None
    is_high = ord(letter) - ord("A") >= max(len(options), _MIN_PRINTED_LETTERS)
    return not is_high and (is_capital or not text.islower())


def _sole_letter(plain: str) -> str | None:
    """Returns the letter of a text that has nothing else: `b`, `(B)`, `B.`; `B` on every line."""
    if "?" in plain or re.search("[A-Za-z][+#&]", plain):
        return None
    letters = set(re.sub(r"[\W_]+", " ", plain).upper().split())
    if (
        len(letters) == 1
        and re.fullmatch("[A-Z]", letter := letters.pop())
        and len(plain.split()) <= 3
    ):
        return letter
    return None


def _mentions(plain: str, options: list[str] | None) -> list[_Mention]:
    covered = [span for option in options or [] for span in _letters_within(plain, option)]
    first_word = match.start() if (match := re.search(r"[^\W_]", plain)) else len(plain)
    mentions = []
    for match in _LETTER.finditer(plain):
        letter, start, end = match[1], match.start(1), match.end(1)
        after = plain[end : end + 40]
        if any(first <= start < last for first, last in covered):
            continue
        bracketed = _is_bracketed(plain, start, end)
        is_first = start <= first_word
        if not bracketed and not _may_be_letter(
            letter, plain[max(0, start - MAX_CONTEXT) : start], after, is_first=is_first
        ):
            continue
        mentions.append(_Mention(letter.upper(), start, end))
    return _without_lists(plain, mentions)


def _is_bracketed(plain: str, start: int, end: int) -> bool:
    """Returns whether a letter is in brackets of its own; the s of "speaker(s)" is not."""
    in_brackets = plain[start - 1 : start] in ("(", "[") and plain[end : end + 1] in (")", "]")
    return in_brackets and (
        plain[start].isupper() or not plain[max(0, start - 2) : start - 1].isalnum()
    )


def _letters_within(plain: str, option: str) -> Iterator[tuple[int, int]]:
    """Yields the spans of an option's text with a letter among its words, which chooses nothing."""
    words = re.findall(r"\w+", unify_characters(option))
    if len(words) > 1 and any(len(word) == 1 and word.isalpha() for word in words):
        pattern = r"(?<!\w)" + r"\W+".join(map(re.escape, words)) + r"(?!\w)"
        yield from (match.span() for match in re.finditer(pattern, plain, re.IGNORECASE))


def _may_be_letter(letter: str, before: str, after: str, *, is_first: bool) -> bool:
    """Returns whether a letter is no word, judged by what follows it."""
    if _CONTINUES.match(after):
        return letter != "I" or not re.match(r"\s*\w", after)
    if _ARTICLE_AFTER.match(after) and is_first:
        return True
    if letter in "AaIi" or letter.islower():
        return False
    if _NOTE.match(after) or not re.match(r"\s+\w\w", after):
        return False
    return is_first or bool(_ANSWER_IS.search(before))


def _without_lists(plain: str, mentions: list[_Mention]) -> list[_Mention]:
    """Returns the mentions without those of a list of options, from A on, each with its text."""
    listed: list[int] = []
    runs: list[list[int]] = []
    for index, mention in enumerate(mentions):
        following = mentions[index + 1].start if index + 1 < len(mentions) else len(plain)
        has_text = bool(re.search(r"\w", plain[mention.end : following].split("\n")[0]))
        after = plain[mention.end : mention.end + 60]
        if (
            not (_LISTED.match(after) and has_text)
            or _DENIED_AFTER.match(after)
            or _RIGHT_AFTER.match(after)
        ):
            continue
        if listed and ord(mention.letter) == ord(mentions[listed[-1]].letter) + 1:
            listed.append(index)
        else:
            runs.append(listed)
            listed = [index] if mention.letter == "A" else []
    dropped = {index for run in (*runs, listed) if len(run) > 1 for index in run}
    return [mention for index, mention in enumerate(mentions) if index not in dropped]


def _statements(plain: str, options: list[str] | None) -> Iterator[_Statement]:
    mentions = _mentions(plain, options)
    index = 0
    while index < len(mentions):
        group = [mentions[index]]
        while (
            index + len(group) < len(mentions)
            and (following := mentions[index + len(group)])
            and _JOINS.fullmatch(plain, group[-1].end, following.start)
        ):
            group.append(following)
        index += len(group)
        statement = _statement_of(
            plain, group, mentions[index].start if index < len(mentions) else len(plain)
        )
        if statement is not None:
            yield statement


def _statement_of(plain: str, group: list[_Mention], following: int) -> _Statement | None:
    """Returns what a group of letters ("A", "A, B or D") states, up to the one at `following`."""
    start, end = group[0].start, group[-1].end
    before, after = plain[max(0, start - MAX_CONTEXT) : start], plain[end : end + 240]
    letters = frozenset(mention.letter for mention in group)

    def state(rank: int, *, denied: bool = False) -> _Statement:
        return _Statement(letters, start, end, rank, denied)

    answered, not_but = _ANSWER_IS.search(before), _NOT_BUT.search(before)
    if not not_but and _DENIED_BEFORE.search(before):
        return state(SUGGESTED, denied=True)
    if _DENIED_AFTER.match(after) or _DENIED_OPTION.match(plain, end, following):
        return state(SUGGESTED, denied=True)
    if _DOUBT_AFTER.match(after) or (not not_but and _DOUBT_BEFORE.search(before)):
        return None
    if answered or not_but or _CORRECTS.search(before):
        return state(ANSWERED)
    at_start = _STARTS_WITH.fullmatch(plain, 0, start)
    line_start = plain.rfind("\n", 0, start) + 1
    line_end = plain.find("\n", end)
    line = (
        plain[line_start : line_end if line_end >= 0 else len(plain)]
        if start - line_start < 20
        else ""
    )
    if (
        at_start and (len(group) > 1 or _ENDS_OPTION.match(after) or _ARTICLE_AFTER.match(after))
    ) or _sole_letter(line):
        return state(ANSWERED)
    if at_start and (
        (plain[start].isupper() and not _CONTINUES.match(after)) or _REASON.match(after)
    ):
        return state(ANSWERED)
    if _is_bracketed(plain, start, end):
        return state(SUGGESTED)
    if re.match(r"[)\]]?[.):]\s", after) and not plain[line_start:start].strip(" ([\"'"):
        return state(SUGGESTED)  # an option that a line begins with
    if _SUGGESTS.search(before) or _RIGHT_AFTER.match(after):
        return state(SUGGESTED)
    return None


def _decide(
    plain: str, statements: list[_Statement], options: list[str] | None
) -> tuple[str | None, bool]:
    """Returns the letter that the statements choose, if any, and whether they agree."""
    asserted = [statement for statement in statements if not statement.denied]
    if not asserted:
        return None, True
    rank = max(statement.rank for statement in asserted)
    clearest = [statement for statement in asserted if statement.rank == rank]
    last = clearest[-1]
    if len(last.letters) > 1:
        return None, False
    if any(statement.letters != last.letters for statement in clearest):
        previous = [statement for statement in clearest if statement.letters != last.letters][-1]
        if not _CHANGES.search(plain, previous.end, last.start):
            return None, False
    (letter,) = last.letters
    if any(
        statement.denied and letter in statement.letters and statement.start > last.start
        for statement in statements
    ):
        return None, False
    if options is not None and _contradicts(plain, last, letter, options):
        return None, False
    return letter, True


def _contradicts(plain: str, statement: _Statement, letter: str, options: list[str]) -> bool:
    """Returns whether the letter precedes another option's text: `A. Violin` if Violin is B."""
    line = plain[statement.end :].lstrip(" )].:,;-、|\"'(").split("\n")[0]
    text = normalize_answer(line)
    same = [
        chr(ord("A") + index)
        for index, option in enumerate(options)
        if text and normalize_answer(option) == text
    ]
    return bool(same) and letter not in same
