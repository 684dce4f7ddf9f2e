"""The checks of declared shapes are on while tests run, and let JAX rebuild trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from stepaudio_jax.kernels.attention_mask import AttentionMask, mask_bias


def test_a_wrong_shape_is_an_error():
    with pytest.raises(TypeCheckError, match="mask_bias"):
        mask_bias(jnp.ones((3, 4), bool))


def test_a_wrong_dtype_is_an_error():
    with pytest.raises(TypeCheckError, match="mask_bias"):
        mask_bias(jnp.ones((2, 3, 4)))


def test_dimensions_of_one_name_must_agree():
    with pytest.raises(TypeCheckError, match="query_prefix_ids"):
        AttentionMask(*(jnp.ones((2, size), int) for size in (3, 5, 4)))


def test_arrays_of_numpy_are_arrays():
    assert mask_bias(np.ones((2, 3, 4), bool)).shape == (2, 1, 1, 3, 4)
    with pytest.raises(TypeCheckError, match="mask_bias"):
        mask_bias(np.ones((3, 4), bool))


def test_mapping_over_a_tree_is_not_checked():
    mask = AttentionMask(jnp.ones((2, 3), int), jnp.ones((2, 3), int))
    assert jax.tree.map(lambda x: x.shape, mask).query_segment_ids == (2, 3)
    rows = jax.vmap(lambda row: row.key_segment_ids.sum())(mask)
    assert rows.shape == (2,)
