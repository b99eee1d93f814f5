"""Collectives counted in HLO that XLA wrote for eight virtual devices."""

import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax import lax
from jax.sharding import PartitionSpec as P

from skipalign_jax.planning import hlo, replica_groups

W = 16  # matrices are W x W fp32
WHOLE = W * W * 4


def gather_in_a_scan(x, weights):
  body = lambda x, w: (x @ lax.all_gather(w, ("a", "b"), tiled=True), None)
  return lax.scan(body, x, weights)[0]


def nested(x, weights):
  inner = lambda x, _: (lax.psum(x, ("a", "b")) * 0.1, None)
  body = lambda x, w: (lax.scan(inner, x, None, 3)[0] @ (w.T @ w), None)
  return lax.scan(body, x, weights)[0]


def until(x, weights):
  del weights
  return lax.while_loop(lambda x: jnp.sum(x) < 100, lambda x: lax.psum(x, "b") + 1, x)


def kinds(x, weights):
  shifted = lax.ppermute(x, "b", [(i, (i + 1) % 4) for i in range(4)])
  scattered = lax.psum_scatter(x @ shifted, "b", tiled=True)
  turned = lax.all_to_all(x, "b", 0, 1, tiled=True)
  return scattered.sum() + turned.sum() + lax.psum(x, "a") + 0 * weights.sum()


PROGRAMS = {f.__name__: f for f in (gather_in_a_scan, nested, until, kinds)}


def print_programs():
  mesh = jax.make_mesh(
    (2, 4), ("a", "b"), (jax.sharding.AxisType.Auto,) * 2
  )  # devices 0-3 and 4-7
  texts = {}
  for name, f in PROGRAMS.items():
    split = jax.shard_map(
      f,
      mesh=mesh,
      in_specs=(P(), P(None, ("a", "b"))),
      out_specs=P(),
      check_vma=False,
    )
    arguments = jnp.ones((W, W)), jnp.ones((5, W, W))
    texts[name] = jax.jit(split).lower(*arguments).compile().as_text()
  print(json.dumps(texts))


@pytest.fixture(scope="module")
def texts():
  environment = tiny.environment(devices=8)
  del environment["JAX_DISABLE_MOST_OPTIMIZATIONS"]  # else loops are not analysed
  done = subprocess.run(
    [sys.executable, os.path.abspath(__file__)],
    env=environment,
    stdout=subprocess.PIPE,
    timeout=300,
    check=True,
  )
  return json.loads(done.stdout)


def rows(traffic):
  return {(c.kind, c.dtype): c for c in traffic.collectives}


@pytest.mark.multidevice
def test_a_gather_in_a_scan_counts_each_trip(texts):
  found = hlo.traffic(texts["gather_in_a_scan"], devices_per_host=8)
  (gather,) = found.collectives
  assert (gather.kind, gather.dtype, gather.count) == ("all-gather", "f32", 5)
  assert gather.payload_bytes == 5 * WHOLE
  assert gather.sent_bytes == 5 * WHOLE * 7 / 8
  assert not gather.crosses_hosts and found.unknown_loops == 0


@pytest.mark.multidevice
def test_loops_multiply_and_a_reduction_travels_twice(texts):
  (reduce,) = hlo.traffic(texts["nested"], 4).collectives
  assert (reduce.kind, reduce.count) == ("all-reduce", 15)
  assert reduce.payload_bytes == 15 * WHOLE
  assert reduce.sent_bytes == pytest.approx(15 * WHOLE * 2 * 7 / 8)
  assert reduce.crosses_hosts


@pytest.mark.multidevice
@pytest.mark.parametrize("name", ["gather_in_a_scan", "nested"])
def test_trips_are_read_from_the_condition_if_xla_notes_none(texts, name):
  assert "known_trip_count" in texts[name]
  bare = re.sub(r'"known_trip_count":\{"n":"\d+"\},?', "", texts[name])
  assert hlo.traffic(bare, 8) == hlo.traffic(texts[name], 8)


@pytest.mark.multidevice
def test_a_loop_that_depends_on_data_is_reported(texts):
  found = hlo.traffic(texts["until"], 8)
  assert found.unknown_loops == 1
  assert rows(found)["all-reduce", "f32"].count == 1


@pytest.mark.multidevice
def test_kinds_and_which_of_them_leave_the_host(texts):
  found = rows(hlo.traffic(texts["kinds"], devices_per_host=4))
  sent = {kind: (c.sent_bytes, c.crosses_hosts) for (kind, _), c in found.items()}
  assert sent == {
    "collective-permute": (WHOLE, False),
    "reduce-scatter": (WHOLE * 3 / 4, False),
    "all-to-all": (WHOLE * 3 / 4, False),
    "all-reduce": (WHOLE, True),  # over "a": devices 0 and 4 are two hosts
  }


# Forms that other versions and backends print.
PIECES = """HloModule m

%part (p: bf16[4]) -> bf16[32] {
  %p = bf16[4]{0} parameter(0)
  ROOT %g = bf16[32]{0} all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8], \
dimensions={0}, frontend_attributes={chain_id="0"}
}

ENTRY %main (x: bf16[4]) -> bf16[32] {
  %x = bf16[4]{0:T(8,128)(2,1)S(1)} parameter(0)
  %one = bf16[32]{0} fusion(%x), kind=kCustom, calls=%part
  ROOT %two = bf16[32]{0} fusion(%x), kind=kCustom, calls=%part
}
"""


def test_pieces_of_one_collective_count_once():
  (gather,) = hlo.traffic(PIECES, 8).collectives
  assert (gather.dtype, gather.count, gather.payload_bytes) == ("bf16", 1, 64)


@pytest.mark.parametrize(
  ("text", "groups"),
  [
    ("replica_groups={{0,1},{2,3}}, x", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, x", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}, x", [[0, 2], [1, 3]]),
    (
      "replica_groups=mesh['a'=1,'b'=2,'c'=2], device_ids=([2,2]T(1,0)) {'c'}, x",
      [[0, 2], [1, 3]],
    ),
    ("source_target_pairs={{0,1},{1,0}}, x", [[0, 1], [1, 0]]),
  ],
)
def test_notations_of_groups(text, groups):
  assert replica_groups.parse(text) == groups


def test_text_that_is_not_a_program_is_refused():
  with pytest.raises(ValueError, match="ENTRY"):
    hlo.traffic("nothing", 8)
  with pytest.raises(ValueError, match="no group"):
    replica_groups.parse("all-gather(%x)")


if __name__ == "__main__":
  print_programs()
