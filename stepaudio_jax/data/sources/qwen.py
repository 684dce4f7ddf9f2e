r"""Rows in the chat form of Qwen's processors: parts without a type, clips under other keys.

{"messages": [{"role": "user", "content": [{"audio": "a.wav"}, {"text": "Transcribe."}]}, ..]}
{"messages": [{"role": "user", "content": [{"type": "audio", "audio_url": "a.wav"}, ..]}, ..]}
{"messages": [{"role": "user", "content": "Audio 1: <audio>a.wav</audio>\nTranscribe."}, ..]}
"""

from collections.abc import Mapping
from typing import Any

from stepaudio_jax.data.sources import trl
from stepaudio_jax.data.sources.base import FormOptions


def adapt(value: Mapping[str, Any], origin: str, options: FormOptions) -> dict[str, Any]:
    """Returns a row of Qwen's chat form in the project's form.

    Raises:
        DataError: a part is neither text nor a clip; or as of `trl.adapt`.
    """
    return trl.adapt(value, origin, options)
