"""Communication that products hide, in schedules as XLA writes them."""

import dataclasses

import pytest

from skipalign_jax.planning import hlo, hlo_text, overlap
from skipalign_jax.runtime import hardware

GATHERED = 8 * 128 * 128 * 2 * 7 / 8  # bytes that a device sends
PRODUCT = 2 * 128 * 1024 * 128

# One gather before a product, one beside it, one that no one waits for separately.
GPU = """HloModule m, is_scheduled=true

ENTRY %main (x: bf16[128,1024], a: bf16[128,128]) -> bf16[1024,128] {
  %x = bf16[128,1024]{1,0} parameter(0)
  %a = bf16[128,128]{1,0} parameter(1)
  %before = (bf16[128,128]{1,0}, bf16[1024,128]{1,0}) all-gather-start(%a), \
channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  %before_done = bf16[1024,128]{1,0} all-gather-done(%before)
  %first = (bf16[128,128]{1,0}, bf16[1024,128]{1,0}) all-gather-start(%a), \
channel_id=2, replica_groups=[1,8]<=[8], dimensions={0}
  %second = (bf16[128,128]{1,0}, bf16[1024,128]{1,0}) all-gather-start(%a), \
channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}
  %product = bf16[128,128]{1,0} dot(%x, %before_done), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}
  %first_done = bf16[1024,128]{1,0} all-gather-done(%first)
  %second_done = bf16[1024,128]{1,0} all-gather-done(%second)
  ROOT %whole = bf16[1024,128]{1,0} all-gather(%product), channel_id=4, \
replica_groups=[1,8]<=[8], dimensions={0}
}
"""


ONE = """HloModule m, is_scheduled=true

ENTRY %main (x: bf16[1024,128]) -> bf16[1024,128] {
  %x = bf16[1024,128]{1,0} parameter(0)
  ROOT %whole = bf16[1024,128]{1,0} all-gather(%x), channel_id=1, \
replica_groups=[1,8]<=[8], dimensions={0}
}
"""


def device(seconds_of_products):
  """Links send one gather in a second; products of GPU take so many."""
  peak = PRODUCT / seconds_of_products / overlap.HIGHEST
  a100 = hardware.HARDWARE["a100-80gb"]
  return dataclasses.replace(a100, flops=peak, link=GATHERED)


def shares(text, seconds):
  computations, _ = hlo_text.parse(text)
  return overlap.shares(computations, 8, device(seconds))


@pytest.mark.parametrize(
  ("seconds", "first", "second"), [(0.5, 0.5, 0), (1.25, 1, 0.25), (9, 1, 1)]
)
def test_a_product_hides_one_gather_after_another(seconds, first, second):
  found = shares(GPU, seconds)
  expected = {"1": 0, "2": first, "3": second}  # 4 has no start and end
  assert found == pytest.approx(expected)


def test_a_product_in_float32_hides_more():
  """Whole float32 products take longer than those of the same size in bf16."""
  text = GPU.replace(
    "rhs_contracting_dims={0}",
    "rhs_contracting_dims={0}, operand_precision={highest,highest}",
  )
  slow = device(1e-4)
  seconds = PRODUCT / overlap.HIGHEST / slow.peak("float32")
  slow = dataclasses.replace(slow, link=GATHERED / (2 * seconds))  # half of one gather
  computations, _ = hlo_text.parse(text)
  found = overlap.shares(computations, 8, slow)
  assert found == pytest.approx({"1": 0, "2": 0.5, "3": 0})


def test_the_share_is_part_of_the_traffic():
  (gather,) = hlo.traffic(GPU, 8, device(1.5)).collectives
  assert gather.sent_bytes == 4 * GATHERED
  assert gather.asynchronous_bytes == 3 * GATHERED
  assert gather.hidden_bytes == pytest.approx(1.5 * GATHERED)
  (unknown,) = hlo.traffic(GPU, 8).collectives
  assert unknown.asynchronous_bytes == 3 * GATHERED and unknown.hidden_bytes == 0


@pytest.mark.parametrize(
  ("kind", "groups", "per_host", "inside", "between"),
  [
    ("all-gather", "[1,8]<=[8]", 8, 7 / 8, 0),
    # Each of four adapters of a host sends its eighth to the other host.
    ("all-gather", "[1,8]<=[8]", 4, 6 / 8, 1 / 8),
    ("all-gather", "[1,8]<=[8]", 2, 4 / 8, 3 / 8),
    ("all-gather", "[1,8]<=[8]", 1, 0, 7 / 8),
    ("all-gather", "[4,2]<=[2,4]T(1,0)", 4, 0, 1 / 2),  # 0 and 4, 1 and 5, …
    ("all-to-all", "[1,8]<=[8]", 4, 3 / 8, 4 / 8),
  ],
)
def test_adapters_of_a_host_share_what_leaves_it(
  kind, groups, per_host, inside, between
):
  text = ONE.replace("all-gather", kind).replace("[1,8]<=[8]", groups)
  (found,) = hlo.traffic(text, per_host).collectives
  whole = 1024 * 128 * 2
  assert found.payload_bytes == whole
  assert found.network_bytes == pytest.approx(between * whole)
  assert found.sent_bytes - found.network_bytes == pytest.approx(inside * whole)
  assert found.crosses_hosts == (between > 0)


def test_a_slow_network_hides_less():
  """Half of a gather's ring is between hosts of two devices: 3/7 of its bytes."""
  slow = dataclasses.replace(device(1.0), network=GATHERED / 7)
  computations, _ = hlo_text.parse(GPU)
  found = overlap.shares(computations, 2, slow)
  assert found["2"] == pytest.approx(1 / (4 / 7 + 3))


# A TPU's compiler puts pieces of one gather into the products that run beside it.
TPU = """HloModule m, is_scheduled=true

%begin (p: bf16[128,128]) -> bf16[1024,128] {
  %p = bf16[128,128]{1,0} parameter(0)
  ROOT %g1 = bf16[1024,128]{1,0} all-gather(%p), channel_id=7, \
replica_groups=[1,8]<=[8], dimensions={0}, frontend_attributes={chain_id="0"}
}

%beside (q: bf16[128,128], r: bf16[128,1024], s: bf16[1024,128]) -> f32[128,128] {
  %q = bf16[128,128]{1,0} parameter(0)
  %r = bf16[128,1024]{1,0} parameter(1)
  %s = bf16[1024,128]{1,0} parameter(2)
  %g2 = bf16[1024,128]{1,0} all-gather(%q), channel_id=7, \
replica_groups=[1,8]<=[8], dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %c = f32[128,128]{1,0} convolution(%r, %s), dim_labels=bf_io->bf
}

%end (t: bf16[128,128]) -> bf16[1024,128] {
  %t = bf16[128,128]{1,0} parameter(0)
  ROOT %g3 = bf16[1024,128]{1,0} all-gather(%t), channel_id=7, \
replica_groups=[1,8]<=[8], dimensions={0}, frontend_attributes={chain_id="0"}
}

ENTRY %main (a: bf16[128,128], x: bf16[128,1024], w: bf16[1024,128]) -> bf16[1024,128] {
  %a = bf16[128,128]{1,0} parameter(0)
  %x = bf16[128,1024]{1,0} parameter(1)
  %w = bf16[1024,128]{1,0} parameter(2)
  %start = bf16[1024,128]{1,0} fusion(%a), kind=kCustom, calls=%begin
  %middle = f32[128,128]{1,0} fusion(%a, %x, %w), kind=kOutput, calls=%beside
  ROOT %done = bf16[1024,128]{1,0} fusion(%a), kind=kCustom, calls=%end
}
"""


def test_a_gather_that_runs_inside_products():
  assert shares(TPU, 0.5) == pytest.approx({"7": 0.5})
  (gather,) = hlo.traffic(TPU, 8, device(0.5)).collectives
  assert gather.sent_bytes == gather.asynchronous_bytes == GATHERED
  assert gather.hidden_bytes == pytest.approx(0.5 * GATHERED)


def test_a_gather_that_another_core_runs():
  """As on a tpu7x, whose sparse cores gather while the others compute."""
  text = TPU.replace(
    "%start = bf16[1024,128]{1,0} fusion(%a), kind=kCustom, calls=%begin",
    "%start = ((bf16[128,128]{1,0}), bf16[1024,128]{1,0}) call-start(%a), "
    'async_execution_thread="sparsecore", to_apply=%begin',
  )
  product = "f32[128,128]{1,0} convolution(%x, %w), dim_labels=bf_io->bf"
  text = text.replace(
    "f32[128,128]{1,0} fusion(%a, %x, %w), kind=kOutput, calls=%beside", product
  )
  done = "ROOT %done = bf16[1024,128]{1,0} "
  text = text.replace(
    f"{done}fusion(%a), kind=kCustom, calls=%end", f"{done}call-done(%start)"
  )
  assert shares(text, 0.5) == pytest.approx({"7": 0.5})
  (gather,) = hlo.traffic(text, 8, device(0.5)).collectives
  assert gather.sent_bytes == gather.asynchronous_bytes == GATHERED


def product(text):
  lines = (
    "ENTRY %main (x: f32[2]) -> f32[2] {\n"
    "  %x = bf16[6,2,4]{2,1,0} parameter(0)\n"
    "  %w = bf16[5,2,4]{2,1,0} parameter(1)\n"
    f"  ROOT %p = {text}\n"
    "}\n"
  )
  computations, _ = hlo_text.parse(lines)
  return overlap.flops(computations["main"][-1], computations["main"])


def test_flops_of_convolutions():
  """Products of [6, 2 · 4] and [2 · 4, 5]; of two pairs of [6, 4] and [4, 5]."""
  joined = "f32[6,1,5]{2,1,0} convolution(%x, %w), window={size=2}, dim_labels="
  assert product(joined + "b0f_o0i->b0f") == 2 * 6 * 8 * 5
  padded = (
    "f32[6,3,5]{2,1,0} convolution(%x, %w), window={size=2 pad=1_1 rhs_reversal=1}, "
  )
  assert product(padded + "dim_labels=b0f_o0i->b0f") == 2 * 6 * 4 * 5 * (1 + 2 + 1)
  spread = (
    "f32[6,2,5]{2,1,0} convolution(%x, %w), "
    "window={size=2 stride=1 pad=0_1 lhs_dilate=2}, dim_labels="
  )
  assert product(spread + "b0f_o0i->b0f") == 2 * 6 * 4 * 5 * 2
