"""The whole model: encodes log-mel, reads tokens, predicts tokens."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from stepaudio_jax.config import ComputeConfig, ModelConfig
from stepaudio_jax.models.decoder import Decoder
from stepaudio_jax.models.encoder import Adaptor, Encoder

Parameters = dict[str, Any]
"""Nested dicts of arrays, in the order of the modules' attributes."""


class StepAudio(nnx.Module):
    """Encoder, adaptor and decoder.

    Args:
        config: the model's shape.
        compute: dtypes, kernels, rematerialisation and sharding rules.
        rngs: the stream `params` gives the initial values.
    """

    def __init__(
        self, config: ModelConfig, *, compute: ComputeConfig | None = None, rngs: nnx.Rngs
    ):
        compute = ComputeConfig() if compute is None else compute
        common: dict[str, Any] = {"param_dtype": jnp.dtype(compute.param_dtype), "rngs": rngs}
        self.config = config
        self.encoder = Encoder(
            config.encoder, length_convention=config.length_convention, compute=compute, **common
        )
        self.adaptor = Adaptor(
            config.adaptor, inputs=config.encoder.hidden, outputs=config.decoder.hidden, **common
        )
        self.decoder = Decoder(config.decoder, compute=compute, **common)

    def encode_chunks(
        self, mel: Float[Array, "B C mel_bins mel_frames"], mel_lengths: Int[Array, "B C"]
    ) -> tuple[Float[Array, "B C audio_frames enc_hidden"], Float[Array, "B C audio_tokens H"]]:
        """Encodes every chunk of audio by itself.

        Args:
            mel: log-mel in fp32, C chunks a row.
            mel_lengths: frames of each chunk, 0 where there is none.

        Returns:
            The encoder's features at 25 Hz, zero beyond each chunk, and the adaptor's outputs at
            12.5 Hz, both in the compute dtype.
        """
        rows, chunks = mel_lengths.shape
        features = self.encoder(mel.reshape(rows * chunks, *mel.shape[2:]), mel_lengths.reshape(-1))
        features = features.reshape(rows, chunks, *features.shape[1:])
        return features, self.adapt_chunks(features)

    def adapt_chunks(
        self, features: Float[Array, "B C audio_frames enc_hidden"]
    ) -> Float[Array, "B C audio_tokens H"]:
        """Applies the adaptor to the encoder's features of every chunk."""
        rows, chunks = features.shape[:2]
        outputs = self.adaptor(features.reshape(rows * chunks, *features.shape[2:]))
        return outputs.reshape(rows, chunks, *outputs.shape[1:])

    def encode_audio(
        self, mel: Float[Array, "B C mel_bins mel_frames"], mel_lengths: Int[Array, "B C"]
    ) -> Float[Array, "B row_audio_tokens H"]:
        """Encodes the chunks of each row and lays the adaptor's outputs end to end, for `embed`."""
        _, outputs = self.encode_chunks(mel, mel_lengths)
        return outputs.reshape(outputs.shape[0], -1, outputs.shape[-1])

    def embed(
        self,
        tokens: Int[Array, "B T"],
        audio: Float[Array, "B row_audio_tokens H"] | None = None,
        audio_index: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T H"]:
        """Computes embeddings of tokens, those of audio replaced by the adaptor's outputs.

        Args:
            tokens: of each row.
            audio: from `encode_audio`; None for text only.
            audio_index: which of the row's audio outputs stands for this token; -1 for text.

        Returns:
            The embeddings in the compute dtype.
        """
        embeddings = self.decoder.embed(tokens)
        if audio is None or audio_index is None or audio.shape[1] == 0:
            return embeddings
        index = jnp.maximum(audio_index, 0)[:, :, None]
        audio_embeddings = jnp.take_along_axis(audio, index, axis=1)
        return jnp.where(
            audio_index[:, :, None] >= 0, audio_embeddings.astype(embeddings.dtype), embeddings
        )

    def decode(
        self,
        embeddings: Float[Array, "B T H"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        prefix_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T H"]:
        """Computes hidden states: see `Decoder.__call__`."""
        return self.decoder(embeddings, positions, segment_ids, prefix_ids)

    def logits(self, hidden: Float[Array, "*B T H"]) -> Float[Array, "*B T V"]:
        """Computes the logits of hidden states, in fp32."""
        return self.decoder.logits(hidden)


def init_parameters(
    config: ModelConfig,
    key: Key[Array, ""],
    compute: ComputeConfig | None = None,
    *,
    shardings: Parameters | None = None,
    parts: Collection[str] = ("encoder", "adaptor", "decoder"),
) -> Parameters:
    """Draws initial parameters; they do not depend on the shardings.

    Args:
        config: the model's shape.
        key: of the random numbers.
        compute: says the dtype of the parameters.
        shardings: the sharding of each parameter; None for the first device.
        parts: those to draw. They are the same arrays as in the whole model, and the others are
            not computed.
    """

    def initialize(key: jax.Array) -> Parameters:
        model = StepAudio(config, compute=compute, rngs=nnx.Rngs(params=key))
        return select(nnx.to_pure_dict(nnx.split(model)[1]))

    def select(tree: Parameters) -> Parameters:
        return {part: tree[part] for part in tree if part in parts}

    out_shardings = None if shardings is None else select(shardings)
    return jax.jit(initialize, out_shardings=out_shardings)(key)


def abstract_model(
    config: ModelConfig, compute: ComputeConfig | None = None
) -> tuple[Any, nnx.State]:
    """Returns the model's graph definition and the shapes and dtypes of its parameters.

    Nothing is allocated.
    """
    model = nnx.eval_shape(lambda: StepAudio(config, compute=compute, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    return graphdef, state


def abstract_parameters(config: ModelConfig, compute: ComputeConfig | None = None) -> Parameters:
    """Returns the parameter tree as nested dicts of `jax.ShapeDtypeStruct`."""
    return nnx.to_pure_dict(abstract_model(config, compute)[1])


def logical_axes(config: ModelConfig) -> Parameters:
    """Returns the parameter tree, each leaf the tuple of its logical axis names."""
    return parameter_metadata(nnx.merge(*abstract_model(config)), "axes")


def parameter_metadata(model: nnx.Module, name: str) -> Parameters:
    """Returns the tree of a module's parameters, each leaf one entry of its metadata.

    `name` is "axes" or "contracting_dims" (see `layers.parameter`).
    """
    metadata: Parameters = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        node = metadata
        for key in path[:-1]:
            node = node.setdefault(str(key), {})
        node[str(path[-1])] = variable.get_metadata()[name]
    return metadata
