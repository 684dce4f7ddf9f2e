"""Embeds clips in a page, so that it needs no other file, up to a bounded size."""

import base64
import dataclasses
import io

import soundfile

from stepaudio_jax.audio import SAMPLE_RATE
from stepaudio_jax.config import AudioChannel, DataConfig
from stepaudio_jax.data.clips import load_clip, probe_clip
from stepaudio_jax.reports.html import Html, element
from stepaudio_jax.reports.page import written
from stepaudio_jax.storage import format_path
from stepaudio_jax.text import AudioPart

_MAX_PLAYED_SECONDS = 20  # 0.85 MB in the page


class ClipPlayer:
    """Makes players of clips as the model gets them: mono, 16 kHz.

    Args:
        channel: which channel of a multichannel clip the model was given and the page plays.
        max_bytes: of all players together; None for no limit. Those beyond it are named only.
        excerpts: whether the beginning of a clip that is too long is played; else it is named only.
    """

    def __init__(
        self,
        channel: AudioChannel = DataConfig.channel,
        *,
        max_bytes: int | None = None,
        excerpts: bool = False,
    ):
        self._channel = channel
        self._max_bytes = max_bytes
        self._excerpts = excerpts
        self._num_bytes = 0
        self.num_skipped = 0

    def play(self, part: AudioPart, label: str) -> Html:
        """Returns a player of a clip with its transcript, or a note why it is not played.

        Args:
            part: names the clip.
            label: what the player is called, for screen readers.

        Raises:
            AudioError: the clip cannot be read.
        """
        # Of the two length conventions "vllm" accepts the shortest clips.
        num_samples = probe_clip(part, length_convention="vllm")
        limit = _MAX_PLAYED_SECONDS * SAMPLE_RATE
        is_long = num_samples is not None and num_samples > limit
        if is_long and not self._excerpts:
            return _note(f"A clip of {(num_samples or 0) / SAMPLE_RATE:.1f} s, too long", part)
        if self._max_bytes is not None and self._num_bytes >= self._max_bytes:
            self.num_skipped += 1
            return _note("A clip too many", part)
        waveform = load_clip(
            _beginning(part) if is_long else part,
            length_convention="vllm",
            channel=self._channel,
        )
        duration_s = len(waveform) / SAMPLE_RATE
        if len(waveform) > limit and not self._excerpts:
            return _note(f"A clip of {duration_s:.1f} s, too long", part)
        wav = io.BytesIO()
        soundfile.write(wav, waveform[:limit], SAMPLE_RATE, format="WAV", subtype="PCM_16")
        source = "data:audio/wav;base64," + base64.b64encode(wav.getvalue()).decode()
        self._num_bytes += len(source)
        total_s = (num_samples or len(waveform)) / SAMPLE_RATE
        return element(
            "div",
            element("audio", src=source, controls=True, preload="metadata", aria_label=label),
            element(
                "p",
                f"The first {_MAX_PLAYED_SECONDS} s of {total_s:.1f} s: {format_path(part.name)}",
                class_="muted",
            )
            if total_s > _MAX_PLAYED_SECONDS
            else None,
            element("p", "Said: ", written(part.transcript), class_="transcript")
            if part.transcript
            else None,
        )


def _beginning(part: AudioPart) -> AudioPart:
    return dataclasses.replace(part, end_s=part.start_s + _MAX_PLAYED_SECONDS)


def _note(what: str, part: AudioPart) -> Html:
    return element("p", f"{what} for this page: {format_path(part.name)}", class_="muted")
