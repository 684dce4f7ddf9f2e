"""The tokenizer against transformers' Qwen2 tokenizer; its special ids; text against specials."""

import pickle
import unicodedata

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.errors import TextError
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.text.special_tokens import (
    AUDIO_CODES,
    QWEN2_TOKENS,
    QWEN25_TOKENS,
    STEP_AUDIO_TOKENS,
)

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  leading, trailing  ",
    "tabs\tand\n\nnewlines\r\n  \n x",
    "你好，世界。今天天气怎么样？",
    "它说：“我不知道”……然后走了。",
    "emoji 🙂👩‍👩‍👧‍👦🇨🇳 and 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "1234567890 3.14159 1,000,000 ２０２４",
    "it's we'll I'M YOU'RE they've",
    "naïve café cafe\u0301 \u212b \ufb01",  # decomposed and compatibility characters
    "def f(x):\n    return x**2  # comment\n",
    "</think",
    "<think>\nlow voice.\n</think>\nA man.",
    "Ελληνικά русский العربية हिन्दी ไทย 한국어 日本語",
    "\x00\x01\x7f\u200b\u2028\ufeff",
    "a" * 1000,
]
SPECIAL_NAMES = [*QWEN2_TOKENS, *QWEN25_TOKENS, *STEP_AUDIO_TOKENS, AUDIO_CODES[0], AUDIO_CODES[-1]]
NO_SURROGATES = st.characters(exclude_categories=["Cs"])


@pytest.fixture(scope="module")
def peer(shared_tokenizer):
    """transformers' own reading of the same two files."""
    return transformers.Qwen2TokenizerFast(
        vocab=str(shared_tokenizer / "vocab.json"), merges=str(shared_tokenizer / "merges.txt")
    )


@pytest.mark.parametrize("text", TEXTS)
def test_text_has_the_tokens_of_transformers(qwen2, peer, text):
    tokens = qwen2.encode(text)
    assert tokens == peer.encode(text)
    assert qwen2.decode(tokens) == unicodedata.normalize("NFC", text)


def test_an_incomplete_think_tag_is_text(qwen2):
    assert qwen2.encode("</think") == [522, 26865]


def test_special_ids_are_the_released_ones(qwen2):
    """Section 8: bold ids were read in released files."""
    special = qwen2.special
    assert (special.pad, special.eot, special.bot) == (151643, 151665, 151666)
    assert (special.think_start, special.think_end) == (151669, 151670)
    assert (special.audio_start, special.audio_end, special.audio_patch) == (151688, 151689, 151690)
    assert (special.tts_start, special.tts_end) == (151693, 151694)
    for token, name in [
        (151644, "<|im_start|>"),
        (151645, "<|im_end|>"),
        (151696, "<audio_0>"),
        (158257, "<audio_6561>"),
    ]:
        assert qwen2.decode([token]) == name
    assert qwen2.vocab_size == 158258


def test_byte_tokenizer_layout(byte_level):
    assert byte_level.encode("aé\n") == [0x61, 0xC3, 0xA9, 0x0A]
    assert byte_level.vocab_size == 290
    names = [byte_level.decode([token]) for token in range(256, 290)]
    assert names == [*QWEN2_TOKENS, *STEP_AUDIO_TOKENS]
    assert (byte_level.special.pad, byte_level.special.eot, byte_level.special.bot) == (
        256,
        259,
        260,
    )


@pytest.mark.parametrize("name", SPECIAL_NAMES)
def test_text_cannot_spell_a_special_token(qwen2, byte_level, name):
    for tokenizer in (qwen2, byte_level):
        for text in (name, f"a{name}b", f" {name}\n{name}"):
            tokens = tokenizer.encode(text)
            assert not any(tokenizer.is_special(token) for token in tokens)
            assert tokenizer.decode(tokens) == text


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.one_of(st.text(NO_SURROGATES), st.sampled_from(SPECIAL_NAMES))))
def test_any_text_survives_encode_and_decode(qwen2, byte_level, parts):
    text = "".join(parts)
    for tokenizer in (qwen2, byte_level):
        tokens = tokenizer.encode(text)
        assert not any(tokenizer.is_special(token) for token in tokens)
        assert tokenizer.decode(tokens) == unicodedata.normalize("NFC", text)


def test_decode_shows_what_is_not_text(qwen2, byte_level):
    special = qwen2.special
    assert (
        qwen2.decode([special.bot, *qwen2.encode("你"), special.audio_patch, special.eot])
        == "<|BOT|>你<audio_patch><|EOT|>"
    )
    assert qwen2.decode([158_300]) == "<|unknown_158300|>"  # the padding of the model's vocabulary
    assert byte_level.decode([0x61, 0xE4, 0xBD]) == "a\ufffd"  # a character cut in two
    assert byte_level.decode([0xE4, 0xBD, 0xA0]) == "你"
    with pytest.raises(TextError, match="-1"):
        byte_level.decode([-1])


def test_is_special_is_true_for_special_ids_only(qwen2):
    assert [
        qwen2.is_special(token) for token in (0, 151_642, 151_643, 151_665, 158_257, 158_258)
    ] == [False] * 2 + [True] * 4


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff"])
def test_refuses_half_a_surrogate_pair(byte_level, text):
    with pytest.raises(TextError, match="surrogate pair"):
        byte_level.encode(text)


def test_a_tokenizer_survives_pickling(byte_level):
    copy = pickle.loads(pickle.dumps(byte_level))
    assert copy.encode("a<|EOT|>") == byte_level.encode("a<|EOT|>")
    assert copy.special == byte_level.special


def test_a_trained_tokenizer_shortens_its_texts_and_loses_nothing(tmp_path):
    texts = ["the doctor is here", "the river is cold", "妈妈有面条", "the doctor is cold"] * 3
    learnt, spelled = Tokenizer.train(texts, merges=30), Tokenizer.byte_level()
    assert learnt.vocab_size <= spelled.vocab_size + 30
    for text in (*texts, "unseen: émigré 🙂\n\n", "<|EOT|>"):
        tokens = learnt.encode(text)
        assert learnt.decode(tokens) == text
        assert len(tokens) <= len(spelled.encode(text))
        assert not any(learnt.is_special(token) for token in tokens)
    assert len(learnt.encode(texts[0])) < len(spelled.encode(texts[0])) / 2
    learnt.save(tmp_path / "tokenizer")
    assert Tokenizer.from_folder(tmp_path / "tokenizer").encode(texts[2]) == learnt.encode(texts[2])
    assert Tokenizer.train(texts, merges=30).encode(texts[1]) == learnt.encode(texts[1])
