"""Keys of other libraries' records that no adapter has read, and what to write instead.

A record may have unknown keys, which are ignored. But the keys by which other libraries (ms-swift,
LLaMA-Factory, TRL, the OpenAI API, Qwen-Audio) name sound, turns, tools, replies and answers are
errors where they are left in a row of the project's form: to ignore them would silently change what
the model is trained on. The adapters of `forms.py` read those that have a meaning here.
"""

import functools
import re
from collections.abc import Container, Iterable, Mapping
from typing import Any

from stepaudio_jax.data.containers.places import AUDIO_EXTENSIONS
from stepaudio_jax.data.sources.json_values import format_json, is_empty
from stepaudio_jax.errors import DataError
from stepaudio_jax.text.dialogue import Message, TextPart

_AUDIO_PART_HINT = (
    'put {"type": "audio", "audio": PATH} into the \'content\' of its turn, at its place'
)
_AUDIO_FILE_HINT = (
    'write {"type": "audio", "audio": PATH}, or the sound itself, "data:audio/wav;base64,.."'
)
_SCHEMES = ("gs", "s3", "https")
NO_IMAGES_HINT = "there are text and sound only: leave it out"
_MAX_HINTS = 3  # in one message
MESSAGES_HINT = 'write the turns as \'messages\', a list of {"role": .., "content": ..}'
_TOOLS_HINT = 'write them as text, in a message {"role": "tool_json_schemas", "content": TEXT}'
_TOOL_CALL_HINT = "write the call as text in 'content', as the model is to write it"
_REJECTED_HINT = (
    "write it as 'rejected_reply', and the better reply as 'reference_reply';"
    " 'messages' then end in the user's turn"
)
_ANSWER_HINT = "write what a verifier compares with as 'answer', or rename the key"

_AUDIO_KEY = re.compile(
    r"(?:(?:input|user|prompt|question|query|rejected)_)?(?:audio|wav)s?"
    r"(?:_(?:file|clip|in|input)s?)?"
    r"(?:_?(?:path|filepath|filename|name_or_path|url|uri|byte|array|base64|b64)s?)?(?:_?\d+)?"
)
# Words of keys that may name sound or something else; the value decides.
_AUDIO_WORDS = frozenset(
    (
        *("audio", "audios", "sound", "sounds", "speech", "voice", "wav", "wavs", "mp3", "flac"),
        *("clip", "clips", "recording", "recordings", "media", "file", "files", "filename"),
        *("filenames", "filepath", "filepaths", "path", "paths", "url", "urls", "uri", "data"),
        *("content", "utterance"),
    )
)
_AUDIO_VALUE = re.compile(
    r"data:audio/.*"
    # base64 of the first bytes of WAV, MP3, Ogg and FLAC
    r"|(?:UklGR|SUQz|T2dnU|ZkxhQ)[a-z0-9+/=\s]{20,}"
    # Not of Sun's `.au`, in which Australian addresses end.
    rf"|.{{1,4000}}\.(?:{'|'.join(sorted(AUDIO_EXTENSIONS - {'au'}))}|pcm)(?:[?#]\S*)?",
    re.I | re.S,
)
_IMAGE_KEY = re.compile(
    r"(?:rejected_)?(?:image|video)s?(?:_?(?:file)?_?(?:path|url|uri|byte|base64)s?)?"
    r"|jpe?g|png|webp|gif|bmp|tiff?"  # members of a tar
)

# Keys of a record that are refused unless they are empty -> what to write instead.
_REFUSED_RECORD_KEYS: Mapping[str, str] = {
    **dict.fromkeys(
        ("system", "system_prompt"),
        'write it as the first message, {"role": "system", "content": TEXT}',
    ),
    **dict.fromkeys(("tools", "functions", "rejected_tools"), _TOOLS_HINT),
    **dict.fromkeys(
        ("rejected_response", "rejected_messages", "negative_messages"), _REJECTED_HINT
    ),
    **dict.fromkeys(("chosen_response", "positive_messages"), "write it as 'reference_reply'"),
    "preferred_output": "write it as 'chosen', and the dialogue before it as 'prompt'",
    "non_preferred_output": "write it as 'rejected', and the dialogue before it as 'prompt'",
    **dict.fromkeys(("solution", "reward_model", "ground_truth", "reference_answer"), _ANSWER_HINT),
    "kto_tag": "write whether the last reply is a good one as 'label', true or false",
    **dict.fromkeys(
        ("conversations", "conversation", "dialog", "dialogue", "history"), MESSAGES_HINT
    ),
    **dict.fromkeys(
        ("query", "response", "instruction", "completion", "completions"), MESSAGES_HINT
    ),
    "objects": NO_IMAGES_HINT,
    "chat_template_kwargs": "there is one prompt format: leave it out",
}
# Keys that name the dialogue only in a record without 'messages'; beside them they are ignored.
_KEYS_WITHOUT_MESSAGES = dict.fromkeys(
    ("input", "output", "text", "question", "turns", "chat", "conv"), MESSAGES_HINT
)

_MEANINGFUL_WHEN_FALSE = ("kto_tag",)

FOREIGN_MESSAGE_KEYS: Mapping[str, str] = {
    "tool_calls": _TOOL_CALL_HINT,
    "function_call": _TOOL_CALL_HINT,
    "tool_call_id": "leave it out; a tool's result stands after the turn that called it",
    "name": "leave it out; a turn has a role and no name",
    "refusal": "write it as 'content'",
    "annotations": "leave it out",
    "audio": _AUDIO_PART_HINT,
    "audios": _AUDIO_PART_HINT,
    "audio_path": _AUDIO_PART_HINT,
    "audio_url": _AUDIO_PART_HINT,
    **dict.fromkeys(("image", "images", "video", "videos"), NO_IMAGES_HINT),
    **dict.fromkeys(
        ("reasoning", "thinking", "thought", "reasoning_text"), "write it as 'reasoning_content'"
    ),
    **dict.fromkeys(("from", "value"), "write 'role' for 'from' and 'content' for 'value'"),
    **dict.fromkeys(("text", "parts"), "write it as 'content'"),
}
FOREIGN_ROLES: Mapping[str, str] = {
    "developer": "write 'system'",
    **dict.fromkeys(("gpt", "bot", "model", "ai", "chatbot"), "write 'assistant'"),
    **dict.fromkeys(
        ("observation", "function", "tool_response", "tool_result", "ipython"), "write 'input'"
    ),
    **dict.fromkeys(
        ("function_call", "tool_call"),
        f"write 'assistant', and {_TOOL_CALL_HINT.removeprefix('write ')}",
    ),
}
PART_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("input_audio", "audio_url", "sound", "speech"), _AUDIO_FILE_HINT),
    **dict.fromkeys(
        ("image", "image_url", "input_image", "video", "video_url", "file", "input_file"),
        NO_IMAGES_HINT,
    ),
    **dict.fromkeys(("input_text", "output_text"), 'write "type": "text"'),
    **dict.fromkeys(
        ("tool_use", "tool_call", "function_call"),
        "write the call as text, as the model is to write it",
    ),
    "tool_result": "write it as the text of a message of the role 'input'",
    **dict.fromkeys(("thinking", "reasoning"), "write it as 'reasoning_content' of the turn"),
}
PART_KEYS: Mapping[str, str] = {
    **dict.fromkeys(
        ("audio_url", "input_audio", "path", "file", "url", "audio_path", "audio_file", "bytes"),
        "name the file in 'audio'",
    ),
    **dict.fromkeys(("text", "audio"), "give it in a part of its own"),
    "content": "name the key as the type, 'text' or 'audio'",
    **dict.fromkeys(("image", "image_url", "video", "video_url"), NO_IMAGES_HINT),
    **dict.fromkeys(("input_text", "output_text", "refusal"), "write it as 'text'"),
    "cache_control": "leave it out",
}

_DATA_URI = re.compile(
    r"data:(?:(?:audio|video)/[\w.+-]+|application/(?:ogg|octet-stream))?"
    r"(?:;[\w=.\"+ -]+)*;base64,",
    re.I,
)
_URL = re.compile(r"([a-z][a-z0-9+.-]+):(//?)", re.I)  # C:/clip.wav is none
_TAGGED_FILE = re.compile(r"<audio>\s*([^<>\n]{1,500})</audio>", re.I)


def check_record_keys(value: Mapping[str, Any], known: Container[str], origin: str) -> None:
    """Checks that a record has no content in keys of other formats.

    Args:
        value: the record, without nulls.
        known: the keys that are read.
        origin: its file and line.

    Raises:
        DataError: names each such key and what to write instead.
    """
    has_dialogue = any(key in value for key in ("messages", "chosen"))
    keys_by_advice: dict[str, list[str]] = {}
    for key, item in value.items():
        advice = None if key in known else _hint(key, item, has_dialogue)
        if advice is not None:
            keys_by_advice.setdefault(advice, []).append(key)
    if keys_by_advice:
        hints = "; ".join(
            f"has {', '.join(map(format_json, keys))}, which {'is' if len(keys) == 1 else 'are'}"
            f" not read: {advice}"
            for advice, keys in list(keys_by_advice.items())[:_MAX_HINTS]
        )
        raise DataError(f"{origin}: {hints}")


def check_unread_audio(value: Mapping[str, Any], known: Container[str], origin: str) -> None:
    """Checks that no unread key names a sound file, in a record whose dialogue has no clip.

    Args:
        value: the record.
        known: keys that are read.
        origin: its file and line.

    Raises:
        DataError: names the key and what to write instead.
    """
    for key, item in value.items():
        if key in known or not is_audio_word(key):
            continue
        if is_audio(item):
            raise DataError(
                f"{origin}: has the key {format_json(key)} with {format_json(item)}, which is not"
                f" read, and its dialogue has no sound; {_AUDIO_PART_HINT}, or leave the key out"
            )


def check_audio_path(path: str, where: str) -> None:
    """Checks that an audio part names its clip in a way that is read.

    That is a file, a file or clip in a bucket (`gs://`, `s3://`), an `https://` address, or the
    content of a file as a `data:` URI.

    Raises:
        DataError: names the place and what to write instead.
    """
    if path[:5].lower() == "data:":
        if _DATA_URI.match(path) is None:
            raise DataError(
                f"{where}: 'audio' is the data URI {format_json(path)}, which is no sound in"
                f" base64; {_AUDIO_FILE_HINT}"
            )
        return
    address = _URL.match(path)
    if address is None:
        return
    scheme = address[1].lower()
    if scheme == "file":
        raise DataError(
            f"{where}: 'audio' is the address {format_json(path)};"
            f" write the path alone, without '{address[1]}:'"
        )
    if address[2] == "//" and scheme not in _SCHEMES:
        raise DataError(
            f"{where}: 'audio' is the address {format_json(path)}; addresses begin with"
            f" {', '.join(f'{name}://' for name in _SCHEMES)}: copy the file to one of these or"
            " here, and write its path"
        )


def is_address(path: str) -> bool:
    """Returns whether a clip is named by an address or holds its content, and is no local path."""
    if path[:5].lower() == "data:":
        return True
    address = _URL.match(path)
    return address is not None and address[2] == "//"


def check_tagged_files(numbered: Iterable[tuple[int, Message]], origin: str) -> None:
    """Checks that no text names a clip: `<audio>NAME.wav</audio>`, which would be read as letters.

    `<audio>` alone is plain text: clips are parts of a turn.

    Args:
        numbered: the messages, with their numbers in the file.
        origin: the record's file and line.

    Raises:
        DataError: names the message, the text and what to write instead.
    """
    for number, message in numbered:
        if message.role == "assistant":
            continue
        for text in (part.text for part in message.parts if isinstance(part, TextPart)):
            for tagged in _TAGGED_FILE.finditer(text):
                if is_audio(tagged[1].strip()):
                    raise DataError(
                        f"{origin}: message {number} ({message.role}) names sound in its text,"
                        f" {format_json(tagged[0])}; {_AUDIO_PART_HINT}"
                    )


def is_refused_key(key: str, item: Any) -> bool:
    """Returns whether a key beside a dialogue has content that `check_record_keys` refuses."""
    return _hint(key, item, has_dialogue=True) is not None


def key_name(key: str) -> str:
    """Returns a key as others may write it: `audioPath`, `audio-path`, `AUDIO_PATH`: audio_path."""
    return "_".join(_words(key))


def is_audio_key(key: str) -> bool:
    """Returns whether a key is named after sound: `audio`, `audios`, `wav_path`, `audioUrl`."""
    return _AUDIO_KEY.fullmatch(key_name(key)) is not None


def is_audio_word(key: str) -> bool:
    """Returns whether a key may name sound, or something else: `file_name`, `speech`, `path`."""
    return not _AUDIO_WORDS.isdisjoint(_words(key))


def _hint(key: str, item: Any, has_dialogue: bool) -> str | None:
    """Returns what to write instead of a key of a record; None if it may stay."""
    advice, numbers_are_harmless = _hint_for_key(key, has_dialogue)
    if advice is None or (numbers_are_harmless and not isinstance(item, str | list | dict)):
        return None
    says_nothing = is_empty(item) and not (item is False and key in _MEANINGFUL_WHEN_FALSE)
    return None if says_nothing else advice


@functools.lru_cache(maxsize=4096)  # a file's records have the same keys
def _hint_for_key(key: str, has_dialogue: bool) -> tuple[str | None, bool]:
    """Returns what to write instead of a key, if anything, and whether a number is harmless."""
    name = key_name(key)
    if is_audio_key(key):
        return _AUDIO_PART_HINT, True
    if _IMAGE_KEY.fullmatch(name):
        return NO_IMAGES_HINT, True
    if name == "prompt":
        if has_dialogue:
            return "the dialogue is in 'messages': leave it out", False
        return f"it is read only beside 'chosen' and 'rejected'; {MESSAGES_HINT}", False
    return _REFUSED_RECORD_KEYS.get(name) or (
        None if has_dialogue else _KEYS_WITHOUT_MESSAGES.get(name)
    ), False


@functools.lru_cache(maxsize=4096)
def _words(key: str) -> tuple[str, ...]:
    """Returns the words of a key: audioPath, audio-path and AUDIO_PATH have the same two."""
    return tuple(re.split(r"[-_ .]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()))


def is_audio(value: Any, levels: int = 3) -> bool:
    """Returns whether a value names a sound file, or holds one."""
    if isinstance(value, str):
        return _AUDIO_VALUE.fullmatch(value.strip()) is not None
    if isinstance(value, dict) and levels:
        return bool({"bytes", "array"} & value.keys()) or any(
            is_audio(item, levels - 1) for item in value.values()
        )
    if isinstance(value, list) and levels:
        return any(is_audio(item, levels - 1) for item in value)
    return False
