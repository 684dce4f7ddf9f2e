"""What a judge in this process hears: the embeddings of clips, each encoded once."""

import weakref
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float32
from numpy.typing import NDArray

from stepaudio_jax.config import ComputeConfig, ModelConfig
from stepaudio_jax.generation import Engine, LoadedModel
from stepaudio_jax.generation.bounded_cache import BoundedCache
from stepaudio_jax.generation.prompts import clip_features, digest_chunk
from stepaudio_jax.judge.query import Clip
from stepaudio_jax.models import Parameters

MAX_EMBEDDING_BYTES = 2**28  # of clips that the judge has encoded for itself

AudioFeatures = Mapping[bytes, Float32[np.ndarray, "audio_frames enc_hidden"]]
"""{digest of a chunk's log-mel (`Prompt.chunk_digests`): the encoder's output}."""


class ClipEmbeddings:
    """Embeds clips for the prompts of a judge.

    A clip that has features of another model with the same encoder is not encoded again. All others
    are encoded clip by clip, so that what is heard does not depend on what else is asked.

    Args:
        model: the judge.

    Attributes:
        num_encoded: number of chunks that the judge has encoded for itself.
    """

    def __init__(self, model: LoadedModel):
        self._model = model
        self._features: AudioFeatures = {}
        self._of_features: dict[str, NDArray[np.float32]] = {}
        self._encoded = BoundedCache[NDArray[np.float32]](MAX_EMBEDDING_BYTES)
        # Both orders of a pair, and all replies to a dialogue, hold the same array.
        self._joined: weakref.WeakValueDictionary[tuple[str, ...], NDArray[np.float32]] = (
            weakref.WeakValueDictionary()
        )
        self.num_encoded = 0

    def set_features(self, features: AudioFeatures) -> None:
        """Replaces the features of another model; see `encoder_difference`."""
        self._features, self._of_features = features, {}
        self._joined.clear()

    def __call__(
        self, engine: Engine, clips: Sequence[Clip]
    ) -> Float32[np.ndarray, "_audio_tokens _H"]:
        """Returns the embeddings of clips end to end, as `Prompt.audio_embeddings` has them.

        Args:
            engine: with the judge's weights.
            clips: one or more, in the order of the prompt.
        """
        key = tuple(clip.digest for clip in clips)
        joined = self._joined.get(key)
        if joined is None:
            embedded = [self._embed(engine, clip) for clip in clips]
            joined = embedded[0] if len(embedded) == 1 else np.concatenate(embedded)
            self._joined[key] = joined
        return joined

    def _embed(self, engine: Engine, clip: Clip) -> NDArray[np.float32]:
        of_features = self._of_features.get(clip.digest)
        if of_features is not None:
            return of_features
        encoded = None if self._features else self._encoded.get(clip.digest.encode())
        if encoded is not None:
            return encoded
        sound = clip_features(clip.read(), self._model.config.length_convention)
        counts = [count for count in sound.chunk_tokens if count]
        features = [self._features.get(digest_chunk(chunk)) for chunk in sound.chunks]
        known = [feature for feature in features if feature is not None]
        if known and len(known) == len(features):
            outputs = [engine.adapt_audio(feature[None])[0] for feature in known]
            joined = _join(outputs, counts)
            self._of_features[clip.digest] = joined
            return joined
        encoded = self._encoded.get(clip.digest.encode())
        if encoded is None:
            encoded = _join(engine.encode_audio(sound.chunks), counts)
            self.num_encoded += len(sound.chunks)
            self._encoded.put(clip.digest.encode(), encoded, encoded.nbytes)
        return encoded


def encoder_difference(
    judge: LoadedModel, model: ModelConfig, compute: ComputeConfig, parameters: Parameters
) -> str:
    """Returns why the features of another model are not what the judge would encode; or "".

    Args:
        judge: the judge.
        model: the other model's shape.
        compute: how it is computed.
        parameters: its tree, or as much of it as the encoder; on the same devices.
    """
    if model.encoder != judge.config.encoder:
        return "its encoder has another shape"
    if model.length_convention != judge.config.length_convention:
        return (
            f"its length_convention is {judge.config.length_convention!r}, not "
            f"{model.length_convention!r}"
        )
    if compute.dtype != judge.compute.dtype:
        return f"it is computed in {judge.compute.dtype}, not in {compute.dtype}"
    theirs, structure = jax.tree.flatten(parameters["encoder"])
    ours, our_structure = jax.tree.flatten(judge.parameters["encoder"])
    if str(structure) != str(our_structure) or any(
        their.shape != our.shape for their, our in zip(theirs, ours, strict=True)
    ):
        return "its encoder has other parameters"
    for their, our in zip(theirs, ours, strict=True):
        if not _is_equal(their, our):
            return "its encoder has other weights"
    return ""


def _is_equal(their: jax.Array, our: jax.Array) -> bool:
    """Returns whether an array has the same values in the dtype of the other one."""
    sharding = their.sharding
    everywhere = None
    if isinstance(sharding, NamedSharding):
        everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    # One array at a time is copied to where the other one lies.
    compare = jax.jit(_equal, out_shardings=everywhere)
    return bool(compare(their, jax.device_put(our, sharding)))


def _equal(their: jax.Array, our: jax.Array) -> jax.Array:
    return jnp.array_equal(their.astype(our.dtype), our)


def _join(
    outputs: Sequence[NDArray[np.float32]], counts: Sequence[int]
) -> Float32[np.ndarray, "_audio_tokens _H"]:
    """Returns the outputs of a clip's chunks end to end, without padding."""
    return np.concatenate(
        [output[:count] for output, count in zip(outputs, counts, strict=True)], dtype=np.float32
    )
