"""Text: tokenizer; dialogue -> token segments; generated tokens -> reasoning and reply."""

from stepaudio_jax.text.chat_templates import CHAT_TEMPLATE
from stepaudio_jax.text.dialogue import AudioPart, Message, Part, Role, TextPart
from stepaudio_jax.text.error import DialogueError, TextError, TokenizerError
from stepaudio_jax.text.laying_out import TokenizedDialogue, tokenize_dialogue
from stepaudio_jax.text.parsing import ParsedReply, Problem, parse_reply, parse_reply_text
from stepaudio_jax.text.rendering import (
    THINK_END,
    Segment,
    audio_tokens,
    render_prompt,
    render_training,
    training_views,
)
from stepaudio_jax.text.special_tokens import SpecialTokens
from stepaudio_jax.text.tokenizer import Tokenizer
from stepaudio_jax.text.validation import validate_dialogue

__all__ = [
    "CHAT_TEMPLATE",
    "THINK_END",
    "AudioPart",
    "DialogueError",
    "Message",
    "ParsedReply",
    "Part",
    "Problem",
    "Role",
    "Segment",
    "SpecialTokens",
    "TextError",
    "TextPart",
    "TokenizedDialogue",
    "Tokenizer",
    "TokenizerError",
    "audio_tokens",
    "parse_reply",
    "parse_reply_text",
    "render_prompt",
    "render_training",
    "tokenize_dialogue",
    "training_views",
    "validate_dialogue",
]
