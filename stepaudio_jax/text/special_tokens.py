"""The special tokens of the Step-Audio vocabulary, and where they stand."""

import dataclasses
from collections.abc import Mapping

QWEN2_VOCAB_SIZE = 151_643  # entries of Qwen2's byte-level BPE; the special tokens follow it

QWEN2_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# Qwen2.5's own additions, which fill the ids between Qwen2's and Step-Audio's exactly.
QWEN25_TOKENS = (
    *(
        "<|object_ref_start|>",
        "<|object_ref_end|>",
        "<|box_start|>",
        "<|box_end|>",
        "<|quad_start|>",
        "<|quad_end|>",
    ),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    *(
        "<tool_call>",
        "</tool_call>",
        "<|fim_prefix|>",
        "<|fim_middle|>",
        "<|fim_suffix|>",
        "<|fim_pad|>",
    ),
    *("<|repo_name|>", "<|file_sep|>"),
)

STEP_AUDIO_TOKENS = (
    *("<|EOT|>", "<|BOT|>", "<|CALL_START|>", "<|CALL_END|>", "<|THINK_START|>", "<|THINK_END|>"),
    *(
        "<|IMG_START|>",
        "<|IMG_END|>",
        "<|META_START|>",
        "<|META_END|>",
        "<im_patch>",
        "<im_start>",
        "<im_end>",
    ),
    *(
        "<dream>",
        "<dream_start>",
        "<dream_end>",
        "<|MASK_1e69f|>",
        "<|UNMASK_1e69f|>",
        "<video_start>",
        "<video_end>",
    ),
    *(
        "<patch_start>",
        "<patch_end>",
        "<patch_newline>",
        "<audio_start>",
        "<audio_end>",
        "<audio_patch>",
    ),
    *("<audio_patch_pad>", "<|SC|>", "<tts_start>", "<tts_end>", "<tts_pad>"),
)

AUDIO_CODES = tuple(
    f"<audio_{code}>" for code in range(6562)
)  # of the speech the model can answer with


def _token(content: str) -> int:
    return dataclasses.field(metadata={"content": content})


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """The ids of the special tokens that the prompt format uses.

    Attributes:
        pad: `<|endoftext|>`.
        bot, eot: begin and end a turn.
        audio_start, audio_patch, audio_end: a chunk of sound; each patch stands for one adaptor
        output.
        tts_start, tts_end: a reply in speech.
        think_start, think_end: unused by the format, whose `<think>` and `</think>` are ordinary
            text.
    """

    pad: int = _token("<|endoftext|>")
    bot: int = _token("<|BOT|>")
    eot: int = _token("<|EOT|>")
    audio_start: int = _token("<audio_start>")
    audio_end: int = _token("<audio_end>")
    audio_patch: int = _token("<audio_patch>")
    tts_start: int = _token("<tts_start>")
    tts_end: int = _token("<tts_end>")
    think_start: int = _token("<|THINK_START|>")
    think_end: int = _token("<|THINK_END|>")

    @staticmethod
    def contents() -> dict[str, str]:
        """How each token is written, by the name of its field."""
        return {
            field.name: field.metadata["content"] for field in dataclasses.fields(SpecialTokens)
        }

    @staticmethod
    def from_ids(ids: Mapping[str, int]) -> "SpecialTokens":
        """From the ids of all added tokens by how they are written.

        Raises:
            KeyError: one is missing; it holds how that one is written.
        """
        return SpecialTokens(
            **{name: ids[content] for name, content in SpecialTokens.contents().items()}
        )


def qwen2_special_tokens() -> dict[int, str]:
    """The special tokens of a Step-Audio vocabulary by id, as they follow Qwen2's BPE."""
    contents = (*QWEN2_TOKENS, *QWEN25_TOKENS, *STEP_AUDIO_TOKENS, *AUDIO_CODES)
    return dict(enumerate(contents, start=QWEN2_VOCAB_SIZE))


def small_special_tokens(first: int) -> dict[int, str]:
    """The special tokens of a small vocabulary by id, from `first` on: Qwen2's and Step-Audio's, without codes of speech."""
    return dict(enumerate((*QWEN2_TOKENS, *STEP_AUDIO_TOKENS), start=first))
