"""Which keys a query attends to: its own segment, its prefix's, and no later key where causal."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Large enough that a masked key gets no weight, and finite, so that a query whose keys are all
# masked gives no NaN.
MASK_VALUE = -1e10


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionMask:
    """The segments of queries and keys.

    Attributes:
        query_segment_ids: the document of each query.
        key_segment_ids: the document of each key.
        query_prefix_ids: a second segment whose keys a query attends to, -1 for none; None where no
            query has one.
        query_offset: the key position of a row's first query, where the queries are a part of the
            row; None for 0 in every row, which lets causal blocks skip the keys behind them.
    """

    query_segment_ids: Int[Array, "B T"]
    key_segment_ids: Int[Array, "B kv_len"]
    query_prefix_ids: Int[Array, "B T"] | None = None
    query_offset: Int[Array, " B"] | None = None

    def block(
        self, causal: bool, start: int, stop: int, num_keys: int
    ) -> Bool[Array, "B block num_keys"]:
        """Returns whether queries `start` to `stop` attend to each of the first `num_keys` keys."""
        prefixes = None if self.query_prefix_ids is None else self.query_prefix_ids[:, start:stop]
        mask = AttentionMask(
            self.query_segment_ids[:, start:stop], self.key_segment_ids[:, :num_keys], prefixes
        ).same_segment()
        if causal:
            query_index = jnp.arange(start, stop)[None, :]
            if self.query_offset is not None:
                query_index += self.query_offset[:, None]
            mask &= query_index[:, :, None] >= jnp.arange(num_keys)
        return mask

    def same_segment(self) -> Bool[Array, "B T kv_len"]:
        """Returns whether a key's segment is the query's own or its prefix."""
        keys = self.key_segment_ids[:, None]
        same = self.query_segment_ids[:, :, None] == keys
        if self.query_prefix_ids is None:
            return same
        return same | (self.query_prefix_ids[:, :, None] == keys)


def mask_bias(mask: Bool[Array, "B T kv_len"]) -> Float[Array, "B 1 1 T kv_len"]:
    """Returns what is added to scores: 0 where a query attends to a key, else `MASK_VALUE`."""
    return jnp.where(mask, 0.0, MASK_VALUE)[:, None, None]
