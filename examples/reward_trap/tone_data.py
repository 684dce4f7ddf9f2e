"""Makes dialogues in which only the tone of the voice says which of two replies fits.

A voice says the same words in a lively and in a subdued manner (by speed, pitch, melody and
loudness), and is offered the same two replies each time: a glad one and a comforting one. The words
say nothing, so a judge that reads prefers the right reply in exactly half of such couples.

The folder holds:

* `audio/00000.flac`, ..: the clips;
* `pairs.jsonl`: preferences, the reply that fits the manner first;
* `held_out_pairs.jsonl`: the same of voices and words that the others do not have;
* `held_out_silent_pairs.jsonl`: the same with silence in place of every clip;
* `prompts.jsonl`: the dialogues of `pairs.jsonl` with the fitting reply as the reference;
* `judge_audio.jsonl`, `judge_transcripts.jsonl`: training dialogues of a judge that hears, and of
  one that reads.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.spoken_corpus.espeak import SAMPLE_RATE as ESPEAK_RATE
from examples.spoken_corpus.espeak import CorpusError, Synthesizer, variant_file
from examples.spoken_corpus.phrases import Kind, Phrase, draw_phrase
from examples.spoken_corpus.voices import ACCENTS, Speaker, similar_voice, speakers
from stepaudio_jax.audio import SAMPLE_RATE, resample
from stepaudio_jax.config import JudgeInputs
from stepaudio_jax.data.clip_files import encode_samples
from stepaudio_jax.judge.prompt import JudgePrompt
from stepaudio_jax.judge.training import write_judge_data
from stepaudio_jax.storage import atomic_directory, write_json_lines

Json = dict[str, Any]
INPUTS: tuple[JudgeInputs, ...] = ("audio", "transcripts")
_SIMILAR_VOICES = 3  # of each training voice, besides itself
_SILENCE = "audio/silence.flac"
_KINDS: tuple[Kind, ...] = ("keyword", "statement")
_SILENCE_S = 1.5
_MAX_LETTERS = 22  # longer than the small base model was trained to hear, if said slowly


@dataclasses.dataclass(frozen=True)
class Manner:
    """Describes how something is said, and what fits as a reply.

    Attributes:
        words_per_minute, pitch, pitch_range: settings of the synthesizer, from and to.
        loudness: of the clip's peak, full scale being 1.
        replies: what a person who talks so would like to hear.
    """

    words_per_minute: tuple[int, int]
    pitch: tuple[int, int]
    pitch_range: tuple[int, int]
    loudness: tuple[float, float]
    replies: tuple[str, ...]


MANNERS: Mapping[str, Manner] = MappingProxyType(
    {
        "lively": Manner(
            words_per_minute=(230, 290),
            pitch=(62, 80),
            pitch_range=(70, 99),
            loudness=(0.5, 0.9),
            replies=("It is lovely!", "Sure! Tell me more!", "Lovely! What is new?"),
        ),
        "subdued": Manner(
            words_per_minute=(120, 150),
            pitch=(18, 34),
            pitch_range=(2, 15),
            loudness=(0.15, 0.4),
            replies=("It is hard.", "Take time.", "You need a quiet night."),
        ),
    }
)


def write_tone_data(output: pathlib.Path, *, couples: int, held_out: int, seed: int = 0) -> None:
    """Writes clips, preferences and prompts; the folder appears when it is complete.

    Args:
        output: a folder that does not exist yet, or is empty.
        couples: number of times that training words are said in both manners.
        held_out: the same of held-out words, by held-out voices.
        seed: of all draws.

    Raises:
        CorpusError: a number is out of range, or espeak-ng is not installed.
        OutputError: the output exists and is not an empty folder.
    """
    for name, value, minimum in (("couples", couples, 1), ("held_out", held_out, 1)):
        if value < minimum:
            raise CorpusError(f"{name}={value} must be at least {minimum}")
    if seed < 0:
        raise CorpusError(f"seed={seed} must be at least 0")
    with atomic_directory(output) as target:
        folder = pathlib.Path(target)
        (folder / "audio").mkdir()
        trained = _write_couples(folder, couples, is_held_out=False, seed=seed)
        write_json_lines(folder / "pairs.jsonl", trained)
        tested = _write_couples(folder, held_out, is_held_out=True, seed=seed)
        write_json_lines(folder / "held_out_pairs.jsonl", tested)
        # One length for all: a lively voice is faster, so a clip's length tells the manner, too.
        silence = np.zeros(round(_SILENCE_S * SAMPLE_RATE), np.float32)
        (folder / _SILENCE).write_bytes(encode_samples(silence, SAMPLE_RATE))
        write_json_lines(folder / "held_out_silent_pairs.jsonl", map(_silenced, tested))
        write_json_lines(folder / "prompts.jsonl", [_prompt(row) for row in trained])


def write_judge_dialogues(folder: pathlib.Path, prompt: JudgePrompt) -> pathlib.Path:
    """Writes the training dialogues of a judge with such a prompt; returns their file."""
    path = folder / f"judge_{prompt.inputs}.jsonl"
    write_judge_data(folder / "pairs.jsonl", path, prompt)
    return path


def say(
    synthesizer: Synthesizer,
    phrase: Phrase,
    voice: str,
    accent: str,
    manner: Manner,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Says a phrase in a manner; returns [samples] f32 at 16 kHz."""

    def draw(limits: tuple[int, int]) -> int:
        return int(rng.integers(limits[0], limits[1] + 1))

    words_per_minute = draw(manner.words_per_minute)
    pitch, melody = draw(manner.pitch), draw(manner.pitch_range)
    spoken = synthesizer.say(
        phrase.text,
        language=accent,
        variant=voice,
        words_per_minute=words_per_minute,
        pitch=pitch,
        pitch_range=melody,
    )
    samples = resample(spoken.astype(np.float32) / np.float32(32768), ESPEAK_RATE, SAMPLE_RATE)
    samples = samples * np.float32(rng.uniform(*manner.loudness) / np.abs(samples).max())
    return np.round(samples * 32768).astype(np.float32) / np.float32(32768)  # 16 bits hold it


def _write_couples(folder: pathlib.Path, count: int, *, is_held_out: bool, seed: int) -> list[Json]:
    """Writes the clips of couples; returns two preferences for each, in random order."""
    rng = np.random.default_rng((seed, 11, int(is_held_out)))
    voices: dict[str, str] = {}
    names: list[Speaker] = []
    for speaker in speakers(held_out=is_held_out):
        names.append(speaker)
        for index in range(1, 1 + (0 if is_held_out else _SIMILAR_VOICES)):
            similar = dataclasses.replace(speaker, similar_index=index)
            voices[similar.name] = similar_voice(variant_file(speaker.variant), rng)
            names.append(similar)
    split = "held_out" if is_held_out else "train"
    rows: list[Json] = []
    with Synthesizer(voices) as synthesizer:
        for number in range(count):
            kind = _KINDS[int(rng.integers(len(_KINDS)))]
            phrase = _draw_short(kind, rng, is_held_out)
            voice = names[int(rng.integers(len(names)))]
            accent = ACCENTS["English"][int(rng.integers(len(ACCENTS["English"])))]
            replies = {name: str(rng.choice(manner.replies)) for name, manner in MANNERS.items()}
            for name, manner in MANNERS.items():
                path = f"audio/{split}-{number:05d}-{name}.flac"
                samples = say(synthesizer, phrase, voice.name, accent, manner, rng)
                (folder / path).write_bytes(encode_samples(samples, SAMPLE_RATE))
                rows.append(_preference(f"{split}-{number:05d}", phrase, path, name, replies))
    return [rows[index] for index in rng.permutation(len(rows))]


def _draw_short(kind: Kind, rng: np.random.Generator, is_held_out: bool) -> Phrase:
    while True:  # both splits have many such phrases
        phrase = draw_phrase(kind, rng, held_out=is_held_out)
        if len(phrase.text) <= _MAX_LETTERS:
            return phrase


def _preference(
    identity: str, phrase: Phrase, path: str, heard: str, replies: Mapping[str, str]
) -> Json:
    """Returns a preference for the reply that fits what was heard, with critiques that name it."""
    (other,) = (name for name in MANNERS if name != heard)
    clip = {
        "type": "audio",
        "audio": path,
        "transcript": phrase.transcript,
        "attributes": {"manner": heard},
    }
    return {
        "id": f"{identity}-{heard}",
        "source": "tone",
        "messages": [{"role": "user", "content": [clip]}],
        "reference_reply": replies[heard],
        "rejected_reply": replies[other],
        "reference_critique": f"{heard} is {heard}: right",
        "rejected_critique": f"{other} is {heard}: wrong",
        "margin": 1,
    }


def _silenced(preference: Json) -> Json:
    """Returns a preference whose clip is silence."""
    clip = {"type": "audio", "audio": _SILENCE}
    return {**preference, "messages": [{"role": "user", "content": [clip]}]}


def _prompt(preference: Json) -> Json:
    """Returns the prompt of a preference: the fitting reply is what others are compared with."""
    keys = ("id", "source", "messages", "reference_reply")
    return {key: preference[key] for key in keys}


def couple_of(identity: str) -> str:
    """Returns what the two preferences of a couple have in common, by the id of one of them."""
    return identity.rpartition("-")[0]
