"""Tests the counted operations of matrix products against XLA's own count and against formulas."""

import jax
import jax.numpy as jnp
import pytest

from stepaudio_jax.planning.hlo import HloModule
from stepaudio_jax.planning.step_time import attention_kernels, matmul_flops, scheduled_matmul_flops


def compiled(function, *shapes):
    """Returns a compiled function of fp32 arrays of these shapes."""
    return (
        jax.jit(function)
        .lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
        .compile()
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"window_strides": (1,), "padding": [(2, 2)]},
        {"window_strides": (2,), "padding": [(1, 0)]},
        {"window_strides": (1,), "padding": [(4, 4)], "rhs_dilation": (2,)},
        {"window_strides": (1,), "padding": [(4, 4)], "lhs_dilation": (3,)},
        {"window_strides": (1,), "padding": [(0, 0)], "feature_group_count": 2},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_convolution_flops_equal_xlas_count(settings):
    """Padding is not multiplied; the TPU compiler writes products as such convolutions."""
    groups = settings.get("feature_group_count", 1)
    program = compiled(
        lambda x, w: jax.lax.conv_general_dilated(
            x, w, dimension_numbers=("NWC", "WIO", "NWC"), **settings
        ),
        (3, 11, 8),
        (5, 8 // groups, 6),
    )
    assert " convolution(" in program.as_text()
    assert matmul_flops(HloModule(program.as_text())) == program.cost_analysis()["flops"]


def test_products_in_a_loop_count_once_an_iteration():
    def layers(x, weights):
        return jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, weights)[0]

    text = compiled(layers, (32, 64), (7, 64, 64)).as_text()
    assert matmul_flops(HloModule(text)) == 7 * 2 * 32 * 64 * 64


# From a plan for v5p, as libtpu writes it: a product whose result has two dimensions of features is
# a convolution with a window of the size of one, and the fusion that holds it runs in the schedule.
PRODUCT = """
%fused (x: bf16[8192,5120], y: bf16[5120,40,128]) -> bf16[8192,40,128] {
  %x = bf16[8192,5120,1]{1,0,2:T(8,128)(2,1)} parameter(0)
  %y = bf16[5120,40,128]{0,2,1:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[8192,40,128]{2,0,1:T(8,128)(2,1)} convolution(%x, %y), \
window={size=40 pad=39_39 rhs_reversal=1}, dim_labels=bf0_i0o->b0f
}

ENTRY %main (x: bf16[8192,5120], y: bf16[5120,40,128]) -> bf16[8192,40,128] {
  %fusion.1 = bf16[8192,40,128]{2,0,1:T(8,128)(2,1)} fusion(%x, %y), kind=kOutput, calls=%fused
  %splash_mha_fwd_segmented_residuals.3 = (f32[512,128]{1,0}, \
bf16[40,8192,128]{2,1,0}) custom-call(%a, %b, %q, %k, %v), custom_call_target="tpu_custom_call", \
operand_layout_constraints={s8[1,16,16]{2,1,0}, s8[1,16,16]{2,1,0}, bf16[40,8192,128]{2,1,0}, \
bf16[8,4096,128]{2,1,0}, bf16[8,4096,128]{2,1,0}, s32[8192,128]{1,0}}, frontend_attributes={}
  ROOT %splash_mha_dq_no_residuals.1 = (f32[512,64]{1,0}, \
bf16[20,1536,64]{2,1,0}) custom-call(%q, %k, %v), custom_call_target="tpu_custom_call", \
operand_layout_constraints={bf16[3,20,1536,64]{3,2,1,0}, bf16[3,20,1536,64]{3,2,1,0}, \
bf16[3,20,1536,64]{3,2,1,0}}
}
"""


def test_product_as_the_tpu_compiler_writes_it():
    module = HloModule(PRODUCT)
    assert scheduled_matmul_flops(module) == {"main": [2 * 8192 * 5120 * 40 * 128, 0.0, 0.0]}
    assert matmul_flops(module) == 2 * 8192 * 5120 * 40 * 128


def test_flops_of_attention_kernels_follow_their_masks():
    """The forward kernel has two products, halved by the mask; dq has three, unmasked."""
    causal, full = attention_kernels(HloModule(PRODUCT))
    assert causal.flops * causal.rows == 2 * (2 * 40 * 8192 * 4096 * 128) / 2
    assert full.flops * full.rows == 3 * 3 * (2 * 20 * 1536 * 1536 * 64)
