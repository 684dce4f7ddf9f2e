"""A small model of random weights that speaks bytes, and clips for it to hear."""

import dataclasses

import jax
import numpy as np
import soundfile
import torch

from stepaudio_jax.audio import load_audio, log_mel
from stepaudio_jax.models import abstract_parameters
from stepaudio_jax.text import AudioPart, Message, TextPart, Tokenizer
from tests.models import torch_reference
from tests.models.random_model import SMALL

BYTES = Tokenizer.byte_level()
CONFIG = dataclasses.replace(
    SMALL, decoder=dataclasses.replace(SMALL.decoder, vocab_size=320, max_positions=400)
)


def peaked_parameters(config=CONFIG, seed=12):
    """Random weights: replies vary with the prompt, and rounding does not decide the best token."""
    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree_util.tree_flatten_with_path(abstract_parameters(config))

    def draw_order(index):
        """Returns the place of a leaf: the head's before the layers' (as if its name were "head").

        With this order the replies of seed 12 differ between the prompts of the tests.
        """
        return [key.key.removeprefix("lm_") for key in leaves[index][0]]

    values = [None] * len(leaves)
    for index in sorted(range(len(leaves)), key=draw_order):
        values[index] = 0.15 * rng.standard_normal(leaves[index][1].shape, np.float32)
    parameters = jax.tree.unflatten(tree, values)
    parameters["decoder"]["embedding"] *= 6
    parameters["decoder"]["lm_head"]["kernel"] *= 20
    parameters["adaptor"]["down"]["kernel"] *= 5
    return parameters


def write_clip(path, seconds, seed=0):
    """Noise under a tone, so that two clips differ in every frame."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(16_000 * seconds)) / 16_000
    wave = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 3000) * time) + 0.05 * rng.normal(
        size=time.size
    )
    soundfile.write(path, wave.astype(np.float32), 16_000)
    return AudioPart(str(path))


def user(*parts):
    """A user's turn of strings and clips."""
    return Message(
        role="user",
        parts=tuple(TextPart(part) if isinstance(part, str) else part for part in parts),
    )


class TorchDialogue:
    """A dialogue written token by token and clip by clip, for the torch reference."""

    def __init__(self, parameters, config=CONFIG):
        self._weights = torch_reference.to_torch(parameters)
        self._config = config
        self._decoder = torch_reference.qwen2(self._weights["decoder"], config.decoder)
        self.tokens = []
        self._embeddings = []

    def write(self, *parts):
        """Text as `str`, special tokens as `int`."""
        for part in parts:
            ids = [part] if isinstance(part, int) else list(part.encode())
            self.tokens += ids
            self._embeddings.append(self._decoder.model.embed_tokens(torch.tensor(ids)))
        return self

    def hear(self, clip):
        """A clip of one chunk, with its marks."""
        mel = torch.tensor(log_mel(load_audio(clip.path)))
        with torch.no_grad():
            features = torch_reference.encode(
                self._weights["encoder"],
                mel,
                heads=self._config.encoder.heads,
                convention=self._config.length_convention,
            )
            counted = mel.shape[-1] - (2 if self._config.length_convention == "hf" else 0)
            outputs = torch_reference.adapt(self._weights["adaptor"], features)[
                : ((counted + 1) // 2 // 2 + 1) // 2
            ]
        self.write(BYTES.special.audio_start)
        self.tokens += [BYTES.special.audio_patch] * len(outputs)
        self._embeddings.append(outputs)
        return self.write(BYTES.special.audio_end)

    def logprobs(self):
        """[T,V]: log p of every possible next token, after each token."""
        with torch.no_grad():
            logits = self._decoder(inputs_embeds=torch.cat(self._embeddings)[None]).logits[0]
        return torch.log_softmax(logits, dim=-1).numpy()
