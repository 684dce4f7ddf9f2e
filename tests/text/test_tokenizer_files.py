"""Tokenizer folders: AutoTokenizer reads what is written; unusable files are refused by name."""

import json

import pytest
import transformers

from stepaudio_jax.errors import TextError
from stepaudio_jax.hub.checkpoint import copy_tokenizer
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.text.special_tokens import (
    AUDIO_CODES,
    QWEN2_TOKENS,
    QWEN25_TOKENS,
    STEP_AUDIO_TOKENS,
    byte_bpe,
    qwen2_tokenizer,
)
from tests.text.test_tokenizer import TEXTS


def rewrite(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def ids_by_name(tokenizer):
    return {
        tokenizer.decode([token]): token
        for token in range(tokenizer.vocab_size)
        if tokenizer.is_special(token)
    }


@pytest.fixture
def folder(tmp_path, byte_level):
    byte_level.save(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def qwen2_folder(qwen2, tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen2")
    qwen2.save(path)
    return path


def check_auto_tokenizer(folder, tokenizer):
    auto = transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert auto.encode(text) == tokenizer.encode(text)
    names = ids_by_name(tokenizer)
    assert auto.convert_tokens_to_ids(list(names)) == list(names.values())
    assert auto.encode("".join(names)) == list(names.values())
    assert (auto.eos_token_id, auto.pad_token_id) == (tokenizer.special.pad,) * 2
    return auto


def test_auto_tokenizer_agrees(qwen2, qwen2_folder, byte_level, folder):
    auto = check_auto_tokenizer(qwen2_folder, qwen2)
    assert len(auto) == 158258
    # A whole prompt as one string, cut at its special tokens by Hugging Face.
    assert auto.encode("<|BOT|>human\nHi<audio_start><audio_patch><audio_end><|EOT|>") == [
        *[151666, *qwen2.encode("human\nHi"), 151688, 151690, 151689, 151665]
    ]
    check_auto_tokenizer(folder, byte_level)


@pytest.mark.parametrize(
    "removed", [(), ("tokenizer.json",), ("tokenizer_config.json", "special_tokens_map.json")]
)
def test_what_is_saved_is_read_again(byte_level, folder, removed):
    for name in removed:
        (folder / name).unlink()
    again = Tokenizer.from_folder(folder)
    assert again.special == byte_level.special
    assert ids_by_name(again) == ids_by_name(byte_level)
    assert all(again.encode(text) == byte_level.encode(text) for text in TEXTS)


def test_a_trained_tokenizer_is_saved_and_read_again(tmp_path, byte_level):
    texts = [
        "The speaker is a man.",
        "The speaker is a woman.",
        "说话的是一位女士。",
        "abc abc bc ab abcd",
    ] * 10
    learnt = Tokenizer.train(texts, merges=60)
    assert learnt.vocab_size <= byte_level.vocab_size + 60
    assert all(2 * len(learnt.encode(text)) < len(byte_level.encode(text)) for text in texts)
    assert list(ids_by_name(learnt)) == list(ids_by_name(byte_level))
    assert learnt.encode("<|EOT|>") != [learnt.special.eot]
    learnt.save(tmp_path)
    check_auto_tokenizer(tmp_path, learnt)
    assert ids_by_name(Tokenizer.from_folder(tmp_path)) == ids_by_name(learnt)


def test_a_token_made_by_two_merges_counts_once():
    """Counting such a token twice would shift the ids of the special tokens."""
    merges = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")]
    bpe = qwen2_tokenizer(byte_bpe(merges))
    assert bpe.get_vocab_size() == 259
    assert bpe.encode("abc").ids == [258]


def test_a_real_vocabulary_is_read_again(qwen2, qwen2_folder):
    again = Tokenizer.from_folder(qwen2_folder)
    assert ids_by_name(again) == ids_by_name(qwen2)
    assert all(again.encode(text) == qwen2.encode(text) for text in TEXTS)


def test_saving_twice_writes_the_same(folder, tmp_path_factory):
    second = tmp_path_factory.mktemp("second") / "new"
    Tokenizer.from_folder(folder).save(second)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in second.iterdir()
    }


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"]
)
def test_another_chat_template_is_kept_beside_ours(folder, tmp_path, name):
    template = "{% for message in messages %}{{ message.content }}|{% endfor %}"
    if name.endswith(".jinja"):
        (folder / name).write_text(template, encoding="utf-8")
    else:
        values = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            if (folder / name).exists()
            else {}
        )
        (folder / name).write_text(
            json.dumps(values | {"chat_template": template}), encoding="utf-8"
        )
    if name != "chat_template.jinja":  # which goes before the others
        (folder / "chat_template.jinja").unlink()
    Tokenizer.from_folder(folder).save(tmp_path / "saved")
    copy_tokenizer(folder, tmp_path / "copied", Tokenizer.from_folder(folder))
    Tokenizer.from_folder(tmp_path / "saved").save(tmp_path / "again")
    for saved in ("saved", "copied", "again"):
        auto = transformers.AutoTokenizer.from_pretrained(tmp_path / saved)
        messages = [{"role": "user", "content": "Hi"}]
        assert auto.apply_chat_template(messages, tokenize=False) == "<|BOT|>human\nHi<|EOT|>"
        assert auto.apply_chat_template(messages, chat_template="original", tokenize=False) == "Hi|"


def test_a_template_for_tools_does_not_take_the_place_of_ours(folder, tmp_path):
    """transformers takes the template named "tool_use" wherever tools are given."""
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    (folder / "chat_template.jinja").unlink()
    rewrite(folder / "tokenizer_config.json", lambda content: content.update(chat_template=named))
    copy_tokenizer(folder, tmp_path / "copied", Tokenizer.from_folder(folder))
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "copied")
    messages, tools = [{"role": "user", "content": "Hi"}], [{"name": "clock"}]
    assert auto.apply_chat_template(messages, tools=tools, tokenize=False).startswith(
        "<|BOT|>tool_json_schemas\n[{"
    )
    originals = [
        auto.apply_chat_template(messages, chat_template=f"original{of}", tokenize=False)
        for of in ("", "_tool_use")
    ]
    assert originals == ["D", "T"]
    rewrite(
        folder / "tokenizer_config.json",
        lambda content: content.update(chat_template=[{"name": "x"}]),
    )
    with pytest.raises(
        TextError, match=r"tokenizer_config.json: 'chat_template' must be a string, or a list"
    ):
        Tokenizer.from_folder(folder)


def test_another_class_of_tokenizer_is_read_by_transformers(folder, byte_level):
    """GPT-2 splits digits and letters differently from Qwen2, and does not normalise to NFC."""
    (folder / "tokenizer.json").unlink()
    rewrite(
        folder / "tokenizer_config.json",
        lambda content: content.update(tokenizer_class="GPT2Tokenizer"),
    )
    tokenizer = Tokenizer.from_folder(folder)
    auto = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (*TEXTS, "e\u0301"):
        assert tokenizer.encode(text) == auto.encode(text)
    assert tokenizer.encode("e\u0301") != byte_level.encode("e\u0301")
    assert ids_by_name(tokenizer) == ids_by_name(byte_level)
    # No text can spell a special token, which transformers allows.
    assert tokenizer.encode("<|EOT|>") == byte_level.encode("<|EOT|>")


def test_a_tokenizer_that_transformers_cannot_convert_is_refused(folder):
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / name).unlink()
    (folder / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(TextError, match="transformers cannot make one") as error:
        Tokenizer.from_folder(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_added_tokens_json_is_enough(folder, byte_level):
    names = ids_by_name(byte_level)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "added_tokens.json").write_text(json.dumps(names))
    assert ids_by_name(Tokenizer.from_folder(folder)) == names


def test_a_qwen25_folder_gets_step_audio_s_tokens(shared_tokenizer, tmp_path, qwen2):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).symlink_to(shared_tokenizer / name)
    added = {
        str(151_643 + index): {"content": name}
        for index, name in enumerate((*QWEN2_TOKENS, *QWEN25_TOKENS))
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert ids_by_name(tokenizer) == ids_by_name(qwen2)


def test_an_id_that_another_token_holds_is_refused(shared_tokenizer, tmp_path):
    """As in Qwen2-Audio's tokenizer, whose own tokens stand where Step-Audio's would."""
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).symlink_to(shared_tokenizer / name)
    added = {"151665": {"content": "<|es|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    with pytest.raises(
        TextError,
        match=r"'<\|EOT\|>' the id 151665, which contradicts the folder's '<\|es\|>'",
    ):
        Tokenizer.from_folder(tmp_path)


def test_ids_without_a_token_shift_nothing(folder):
    """Hugging Face's library renumbers added tokens where ids are left out."""

    def leave_out(content):
        content["added_tokens"] = [
            item for item in content["added_tokens"] if item["content"] != "<|im_end|>"
        ]

    rewrite(folder / "tokenizer.json", leave_out)
    rewrite(
        folder / "tokenizer_config.json", lambda content: content["added_tokens_decoder"].pop("258")
    )
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.special == Tokenizer.byte_level().special
    assert tokenizer.decode([258]) == "<|reserved_token_258|>"
    tokenizer.save(folder)
    check_auto_tokenizer(folder, tokenizer)


def test_truncation_and_post_processor_are_dropped(folder, byte_level):
    """Truncation, and a post-processor that puts a token in front of every text."""

    def change(content):
        content["truncation"] = {
            "direction": "Right",
            "max_length": 4,
            "strategy": "LongestFirst",
            "stride": 0,
        }
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<|BOT|>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
            ],
            "special_tokens": {"<|BOT|>": {"id": "<|BOT|>", "ids": [260], "tokens": ["<|BOT|>"]}},
        }

    rewrite(folder / "tokenizer.json", change)
    text = "longer than four bytes"
    assert Tokenizer.from_folder(folder).encode(text) == byte_level.encode(text)


def remove_eot_and_tts(content):
    content["added_tokens"] = [
        item for item in content["added_tokens"] if item["content"] not in ("<|EOT|>", "<tts_end>")
    ]


def put_eot_into_the_bpe(content):
    content["added_tokens"] = [
        item for item in content["added_tokens"] if item["content"] != "<|EOT|>"
    ]
    content["added_tokens"].append({"id": 97, "content": "a"})
    content["added_tokens"].append({"id": 259, "content": "<|EOT|>"})


BAD_WHOLE = [
    (lambda content: content["model"].update(type="Unigram"), "the model is 'Unigram'"),
    (lambda content: content.update(model=None), "the model is None"),
    (
        lambda content: content["model"].update(vocab={"a": 0}),
        "has no token for 255 of the 256 bytes",
    ),
    (
        lambda content: content["model"]["vocab"].update({"▁the": 256}),
        "'▁the', which stands for no bytes",
    ),
    (lambda content: content["model"]["vocab"].update({"ab": 999}), "257 tokens and ids up to 999"),
    (lambda content: content.update(pre_tokenizer=None), "does not give back the text"),
    (
        lambda content: content.update(normalizer={"type": "Lowercase"}, decoder=5),
        "is not a tokenizer file",
    ),
    (lambda content: content.update(added_tokens=[{"id": 1}]), "must have 'content'"),
    (
        lambda content: content.update(added_tokens=["<|EOT|>"]),
        "'added_tokens' must be a list of objects",
    ),
    (
        lambda content: content["added_tokens"].append({"id": -1, "content": "x"}),
        "-1 is not a token id",
    ),
    (
        lambda content: content["added_tokens"].append({"id": 10**12, "content": "x"}),
        "1000000000000 is not a token id",
    ),
    (
        lambda content: content["added_tokens"].append({"id": 290, "content": "<|EOT|>"}),
        "several ids to one added token",
    ),
    (put_eot_into_the_bpe, "text can spell"),
]


@pytest.mark.parametrize(("change", "reason"), BAD_WHOLE)
def test_refuses_tokenizer_json(folder, change, reason):
    (folder / "tokenizer_config.json").unlink()
    rewrite(folder / "tokenizer.json", change)
    with pytest.raises(TextError, match=reason) as error:
        Tokenizer.from_folder(folder)
    assert str(folder / "tokenizer.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_lists_missing_special_tokens(folder):
    (folder / "tokenizer_config.json").unlink()
    rewrite(folder / "tokenizer.json", remove_eot_and_tts)
    with pytest.raises(TextError, match=r"lacks the special tokens <\|EOT\|>, <tts_end>"):
        Tokenizer.from_folder(folder)


def test_a_config_that_contradicts_the_vocabulary_is_refused(folder):
    rewrite(
        folder / "tokenizer_config.json",
        lambda content: content["added_tokens_decoder"]["259"].update(content="<|BOT|>"),
    )
    with pytest.raises(TextError, match=r"tokenizer_config.json: gives '<\|BOT\|>' the id 259"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", "{", "is not JSON"),
        ("tokenizer.json", "[]", "must hold a JSON object"),
        ("tokenizer.json", b"\xff\xfe", "is not JSON"),
        ("tokenizer_config.json", "{", "is not JSON"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "must be an object from id"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"x": {"content": "y"}}}',
            "'x' is not a token id",
        ),
        ("added_tokens.json", '{"<|EOT|>": "many"}', "'many' is not a token id"),
    ],
)
def test_refuses_malformed_json(folder, name, content, reason):
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(TextError, match=reason) as error:
        Tokenizer.from_folder(folder)
    assert str(folder / name) in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("vocab.json", '{"a": 5}', "the ids from 0"),
        ("vocab.json", '{"a": [0]}', "the ids from 0"),
        ("vocab.json", "{}", "the ids from 0"),
        ("vocab.json", '{"a": 0}', "has no token for 255 of the 256 bytes"),
        ("merges.txt", "#version: 0.2\nx yz\n", "does not fit"),
        ("merges.txt", "only_one_column\n", "does not fit"),
    ],
)
def test_refuses_a_vocabulary(folder, name, content, reason):
    (folder / "tokenizer.json").unlink()
    (folder / name).write_text(content)
    with pytest.raises(TextError, match=reason) as error:
        Tokenizer.from_folder(folder)
    assert str(folder / name) in str(error.value)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path, folder):
    with pytest.raises(TextError, match="nowhere does not exist"):
        Tokenizer.from_folder(tmp_path / "nowhere")
    (folder / "tokenizer.json").unlink()
    (folder / "merges.txt").unlink()
    with pytest.raises(TextError, match=r"merges.txt does not exist"):
        Tokenizer.from_folder(folder)


def test_a_bare_vocabulary_of_unknown_size_is_refused(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(TextError, match="has 256 tokens and none of Step-Audio's special tokens"):
        Tokenizer.from_folder(folder)


def test_the_special_tokens_are_complete():
    assert len(QWEN2_TOKENS) + len(QWEN25_TOKENS) == 151_665 - 151_643
    assert len(AUDIO_CODES) == 6562
    assert (
        len({*QWEN2_TOKENS, *QWEN25_TOKENS, *STEP_AUDIO_TOKENS, *AUDIO_CODES}) == 158_258 - 151_643
    )
