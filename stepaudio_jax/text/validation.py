"""What makes a sequence of messages a dialogue."""

from collections.abc import Sequence
from typing import get_args

from stepaudio_jax.text.dialogue import Message, Role
from stepaudio_jax.text.error import DialogueError

_TEXT_ONLY_ROLES: tuple[Role, ...] = ("assistant", "tool_json_schemas")


def validate_dialogue(messages: Sequence[Message]) -> None:
    """Checks that the prompt format can hold these messages.

    Raises:
        DialogueError: there is no user's turn; or a message has an unknown role, no content (for an
            assistant: no text but white space), audio where only text can be, or reasoning though
            it is not the assistant's. Numbered from 1.
    """
    for number, message in enumerate(messages, 1):
        where = f"message {number} ({message.role})"
        if message.role not in get_args(Role):
            raise DialogueError(
                f"message {number} has the unknown role {message.role!r} (allowed: {', '.join(get_args(Role))})"
            )
        if message.role in _TEXT_ONLY_ROLES and message.audio:
            raise DialogueError(f"{where} has audio; it can hold text only")
        if message.role == "assistant" and not message.text.strip():
            raise DialogueError(f"{where} has no content; give its reply, or remove the turn")
        if not message.audio and not message.text:
            raise DialogueError(f"{where} has no content; give its text or audio, or remove it")
        if message.role != "assistant" and message.reasoning is not None:
            raise DialogueError(f"{where} has reasoning; only an assistant turn can have it")
    if all(message.role != "user" for message in messages):
        raise DialogueError("the dialogue has no user turn; give it one, or remove it")
