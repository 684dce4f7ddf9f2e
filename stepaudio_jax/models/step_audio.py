"""The whole model: hears log-mel, reads tokens, predicts tokens."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from stepaudio_jax.config import ComputeConfig, ModelConfig
from stepaudio_jax.models.decoder import Decoder
from stepaudio_jax.models.encoder import Adaptor, Encoder

Parameters = dict[str, Any]


class StepAudio(nnx.Module):
    """Encoder, adaptor and decoder.

    Args:
        config: the shape.
        compute: how it is computed.
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

    def encode_chunks(self, mel: jax.Array, mel_lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes every chunk by itself.

        Args:
            mel: [B,C,M,F] fp32, C chunks a row, F mel frames.
            mel_lengths: [B,C] i32, frames of each chunk, 0 where there is none.

        Returns:
            The encoder's features at 25 Hz [B,C,E,H_encoder], zero beyond each chunk, and the
            adaptor's outputs at 12.5 Hz [B,C,A,H], both in the compute dtype.
        """
        rows, chunks = mel_lengths.shape
        features = self.encoder(mel.reshape(rows * chunks, *mel.shape[2:]), mel_lengths.reshape(-1))
        outputs = self.adaptor(features)
        return features.reshape(rows, chunks, *features.shape[1:]), outputs.reshape(
            rows, chunks, *outputs.shape[1:]
        )

    def encode_audio(self, mel: jax.Array, mel_lengths: jax.Array) -> jax.Array:
        """The adaptor's outputs of a row's chunks laid end to end: [B,C,M,F] -> [B, C*A, H], ready for `embed`."""
        _, outputs = self.encode_chunks(mel, mel_lengths)
        return outputs.reshape(outputs.shape[0], -1, outputs.shape[-1])

    def embed(
        self,
        tokens: jax.Array,
        audio: jax.Array | None = None,
        audio_index: jax.Array | None = None,
    ) -> jax.Array:
        """Token embeddings, those of audio tokens replaced by the adaptor's outputs.

        Args:
            tokens: [B,T] i32.
            audio: [B,A,H], from `encode_audio`; None for text only.
            audio_index: [B,T] i32, the index into A that stands for this token, or -1.

        Returns:
            [B,T,H] in the compute dtype.
        """
        embeddings = self.decoder.embed(tokens)
        if audio is None or audio_index is None or audio.shape[1] == 0:
            return embeddings
        audio_embeddings = jnp.take_along_axis(
            audio, jnp.maximum(audio_index, 0)[:, :, None], axis=1
        )
        return jnp.where(
            audio_index[:, :, None] >= 0, audio_embeddings.astype(embeddings.dtype), embeddings
        )

    def decode(
        self,
        embeddings: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        prefix_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Runs the decoder: see `Decoder.__call__`."""
        return self.decoder(embeddings, positions, segment_ids, prefix_ids)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [B,T,H] -> logits [B,T,V] fp32."""
        return self.decoder.logits(hidden)


def abstract_model(
    config: ModelConfig, compute: ComputeConfig | None = None
) -> tuple[Any, nnx.State]:
    """The model's graph definition and the state of its parameters as shapes and dtypes; nothing is allocated."""
    model = nnx.eval_shape(lambda: StepAudio(config, compute=compute, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    return graphdef, state


def abstract_parameters(config: ModelConfig, compute: ComputeConfig | None = None) -> Parameters:
    """The parameter tree as nested dicts of `jax.ShapeDtypeStruct`."""
    return nnx.to_pure_dict(abstract_model(config, compute)[1])


def parameter_metadata(model: nnx.Module, name: str) -> Parameters:
    """The tree of a module's parameters, each leaf what its declaration says under `name` ("axes" or "contracting_dims")."""
    metadata: Parameters = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        node = metadata
        for key in path[:-1]:
            node = node.setdefault(str(key), {})
        node[str(path[-1])] = variable.get_metadata()[name]
    return metadata


def logical_axes(config: ModelConfig) -> Parameters:
    """The parameter tree, each leaf the tuple of its logical axis names."""
    return parameter_metadata(nnx.merge(*abstract_model(config)), "axes")


def init_parameters(
    config: ModelConfig,
    key: jax.Array,
    compute: ComputeConfig | None = None,
    *,
    shardings: Parameters | None = None,
    parts: Collection[str] = ("encoder", "adaptor", "decoder"),
) -> Parameters:
    """Freshly initialised parameters as nested dicts of arrays, the same whatever their shardings (None: the first device).

    Of the whole model, or of some parts of it: the same arrays then, and the others are not drawn.
    """

    def initialise(key: jax.Array) -> Parameters:
        model = StepAudio(config, compute=compute, rngs=nnx.Rngs(params=key))
        return _of_parts(nnx.to_pure_dict(nnx.split(model)[1]))

    def _of_parts(tree: Parameters) -> Parameters:
        return {part: tree[part] for part in tree if part in parts}

    return jax.jit(initialise, out_shardings=None if shardings is None else _of_parts(shardings))(
        key
    )
