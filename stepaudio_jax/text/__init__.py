"""Text: dialogues, their prompt format, tokenizers, and the reading of answers."""

from stepaudio_jax.text.chat_templates import CHAT_TEMPLATE
from stepaudio_jax.text.dialogue import (
    AudioPart,
    Message,
    Part,
    Role,
    TextPart,
    TimedText,
    validate_dialogue,
    with_transcripts,
)
from stepaudio_jax.text.prompt_format import (
    THINK_END,
    ParsedReply,
    Problem,
    Segment,
    TokenizedDialogue,
    audio_tokens,
    parse_reply,
    parse_reply_text,
    render_prompt,
    render_training,
    tokenize_dialogue,
    training_views,
)
from stepaudio_jax.text.special_tokens import SpecialTokens
from stepaudio_jax.text.tokenizer import Tokenizer

__all__ = [
    "CHAT_TEMPLATE",
    "THINK_END",
    "AudioPart",
    "Message",
    "ParsedReply",
    "Part",
    "Problem",
    "Role",
    "Segment",
    "SpecialTokens",
    "TextPart",
    "TimedText",
    "TokenizedDialogue",
    "Tokenizer",
    "audio_tokens",
    "parse_reply",
    "parse_reply_text",
    "render_prompt",
    "render_training",
    "tokenize_dialogue",
    "training_views",
    "validate_dialogue",
    "with_transcripts",
]
