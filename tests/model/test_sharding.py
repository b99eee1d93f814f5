"""The table of layouts, and many devices against one."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import AbstractMesh

from skipalign_jax.data import packing
from skipalign_jax.method import preference
from skipalign_jax.model import decoder, known_models, lora, sharding
from skipalign_jax.runtime import errors
from skipalign_jax.training import optimizer
from skipalign_jax.training import state as state_lib

FAMILY = [
  tiny.config(),
  tiny.config(tie_embeddings=True, attention_bias=True, mlp_bias=True),
  tiny.config(attention_bias=True, family="qwen2"),
  tiny.config(family="qwen3"),
]


def by_path(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {sharding.path_of(path): leaf for path, leaf in leaves}


def specs(config, **sizes):
  """Path -> spec as a tuple, on a mesh that needs no devices."""
  mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
  _, shapes = decoder.definition(config)
  layouts = by_path(sharding.params_shardings(mesh, shapes))
  return {path: tuple(layout.spec) for path, layout in layouts.items()}


def test_each_parameter_matches_one_row_and_each_row_a_parameter():
  used = set()
  for config in FAMILY:
    for path, shape in by_path(decoder.definition(config)[1]).items():
      assert len(sharding.spec(path)) == len(shape.shape), path
      used |= {row for row, _ in sharding.TABLE if re.fullmatch(row, path)}
  assert used == {row for row, _ in sharding.TABLE}


@pytest.mark.parametrize(
  "path",
  ["layers/attn/v_norm/weight", "decoder/embed/weight", "layers/mlp/up/weight/scale"],
)
def test_an_unknown_parameter_has_no_layout(path):
  with pytest.raises(AssertionError, match="0 rows"):
    sharding.spec(path)


SHARDS = ("fsdp", "context")
LAYOUT = {
  "embed/weight": ("tensor", SHARDS),
  "lm_head/weight": ("tensor", SHARDS),
  "layers/attn/q/weight": (None, "tensor", SHARDS),
  "layers/attn/k/weight": (None, "tensor", SHARDS),
  "layers/attn/v/weight": (None, "tensor", SHARDS),
  "layers/attn/o/weight": (None, SHARDS, "tensor"),
  "layers/mlp/gate/weight": (None, "tensor", SHARDS),
  "layers/mlp/up/weight": (None, "tensor", SHARDS),
  "layers/mlp/down/weight": (None, SHARDS, "tensor"),
  "layers/attn_norm/weight": (None, SHARDS),
  "layers/mlp_norm/weight": (None, SHARDS),
  "norm/weight": (SHARDS,),
}


# Parameters and shard sizes that a device holds on a mesh of 2 x 4 x 8 x 2.
@pytest.mark.parametrize(
  ("name", "billions", "embed", "kv", "down"),
  [
    ("meta-llama/Llama-2-7b-hf", 6.738, (4000, 512), (512, 512), (512, 1376)),
    ("meta-llama/Llama-2-13b-hf", 13.016, (4000, 640), (640, 640), (640, 1728)),
    ("meta-llama/Llama-2-70b-hf", 68.977, (4000, 1024), (128, 1024), (1024, 3584)),
    ("01-ai/Yi-6B-200K", 6.061, (8000, 512), (64, 512), (512, 1376)),
    ("01-ai/Yi-34B-200K", 34.389, (8000, 896), (128, 896), (896, 2560)),
    ("meta-llama/Llama-3.1-8B", 8.030, (16_032, 512), (128, 512), (512, 1792)),
    ("mistralai/Mistral-7B-v0.3", 7.248, (4096, 512), (128, 512), (512, 1792)),
  ],
)
def test_layouts_of_known_models(name, billions, embed, kv, down):
  config = known_models.KNOWN[name]
  sizes = dict(data=2, fsdp=4, tensor=8, context=2)
  assert specs(config, **sizes) == LAYOUT
  assert config.num_params() / 1e9 == pytest.approx(billions, abs=1e-3)
  mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
  params = by_path(decoder.definition(config)[1])
  held = {
    path: at.shard_shape(params[path].shape)
    for path, at in by_path(
      sharding.params_shardings(mesh, decoder.definition(config)[1])
    ).items()
  }
  assert held["embed/weight"] == embed
  assert held["layers/attn/k/weight"] == (config.num_layers, *kv)
  assert held["layers/mlp/down/weight"] == (config.num_layers, *down)


def test_a_dimension_that_does_not_divide_stays_whole():
  got = specs(
    tiny.config(attention_bias=True), data=1, fsdp=16, tensor=8, context=1
  )  # D = 24
  assert got["embed/weight"] == ("tensor", None)  # V = 40
  assert got["layers/attn/o/weight"] == (None, None, "tensor")
  assert got["layers/attn/k/bias"] == (None, "tensor")
  assert got["norm/weight"] == (None,)


def test_minus_one_takes_the_devices_that_are_left():
  devices = np.array(jax.devices()[:1] * 8, object)
  mesh = sharding.make_mesh(dict(data=2, fsdp=-1, tensor=2, context=1), list(devices))
  assert dict(mesh.shape) == dict(data=2, fsdp=2, tensor=2, context=1)
  mesh = sharding.make_mesh(dict(data=1, fsdp=8, tensor=1, context=1), list(devices))
  assert dict(mesh.shape) == dict(data=1, fsdp=8, tensor=1, context=1)


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ((1, 4, 1, 1), "does not fit 8 devices"),
    ((1, 16, 1, 1), "does not fit 8 devices"),
    ((1, -1, 3, 1), "does not fit 8 devices"),
    ((1, -1, 16, 1), "does not fit 8 devices"),
    ((-1, -1, 1, 1), "mesh.data=-1 and mesh.fsdp=-1"),
    ((1, 0, 8, 1), "mesh.fsdp=0 .*at least 1"),
    ((1, -2, 8, 1), "mesh.fsdp=-2 .*at least 1, or -1"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
  sizes = dict(zip(sharding.AXES, sizes, strict=True))
  with pytest.raises(errors.UserError, match=message):
    sharding.make_mesh(sizes, jax.devices()[:1] * 8)


@dataclasses.dataclass(frozen=True)
class StandIn:
  """What JAX knows of a device that is not here."""

  id: int
  process_index: int
  slice_index: int
  device_kind: str = "NVIDIA A100-SXM4-80GB"
  platform: str = "gpu"
  coords: tuple[int, ...] = ()
  core_on_chip: int = 0


def gpus(*per_host):
  """A process for each GPU, as SLURM starts them; hosts take turns."""
  order = sorted((i, host) for host, count in enumerate(per_host) for i in range(count))
  return [StandIn(at, at, host) for at, (_, host) in enumerate(order)]


def tpus(kind, *axes, slices=1):
  places = list(np.ndindex(*axes))
  return [
    StandIn(at, at // 4, at // len(places), kind, "tpu", tuple(map(int, place)))
    for at, place in enumerate(places * slices)
  ]


@pytest.mark.parametrize(
  ("devices", "sizes", "in_one_slice"),
  [
    (gpus(8, 8), (1, 16, 1, 1), 8),
    (gpus(8, 8), (2, 8, 1, 1), 8),
    (gpus(8, 8), (4, 4, 1, 1), 4),
    (gpus(8, 8), (1, 1, 2, 8), 8),
    (gpus(4, 4, 4), (1, 6, 2, 1), 4),
    (gpus(6, 6), (3, 4, 1, 1), 2),
    (gpus(8, 4), (1, 12, 1, 1), 1),
    (tpus("TPU v5", 2, 2, 4, slices=2), (2, 16, 1, 1), 16),
    (tpus("TPU v5", 4, 4, 4), (2, 32, 1, 1), 64),
    (tpus("TPU v6 lite", 8, 8, 1), (16, 4, 1, 1), 64),
  ],
)
def test_a_mesh_takes_hosts_of_gpus_and_any_axes_of_a_slice(
  devices, sizes, in_one_slice
):
  """`in_one_slice`: neighbours in the mesh that are in the same slice."""
  mesh = sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)), devices)
  assert tuple(mesh.shape.values()) == sizes
  assert set(mesh.devices.flat) == set(devices)
  for group in mesh.devices.reshape(-1, in_one_slice):
    assert len({device.slice_index for device in group}) == 1
  index, count = 0, len({device.process_index for device in devices})
  assert sizes[2:] != (1, 1) or sharding.process_share(mesh) == (index, count)


def test_a_process_per_device_shares_rows_where_hosts_differ(monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 11)
  each = gpus(8, 4)
  sizes = dict(data=1, fsdp=-1, tensor=1, context=1)
  assert sharding.process_share(sharding.make_mesh(sizes, each)) == (11, 12)
  by_host = [dataclasses.replace(one, process_index=one.slice_index) for one in each]
  with pytest.raises(errors.UserError, match="start a process for each device"):
    sharding.process_share(sharding.make_mesh(sizes, by_host))


MESHES = {  # data, fsdp, tensor, context
  "one": (1, 1, 1, 1),
  "data8": (8, 1, 1, 1),
  "fsdp8": (1, 8, 1, 1),
  "fsdp4_tensor2": (1, 4, 2, 1),
  "data2_fsdp2_tensor2": (2, 2, 2, 1),
  "fsdp2_context4": (1, 2, 1, 4),  # two kv heads, so they are repeated
  "fsdp2_tensor2_context2": (1, 2, 2, 2),
  "all": (2, 2, 2, 2),
}
STEPS = 10
ADAPTERS = lora.Config(3, 6.0, tuple(lora.MATRICES), "nf4")


def batch_of(t):
  """Packed rows; in odd steps samples weigh alike, as loss.reduction=sequence says."""
  batch = tiny.batch(seed=t)
  if t % 2:
    rows = zip(batch["segment_ids"], batch["loss_weight"], strict=True)
    weighed = [
      packing.weigh_samples_equally({"segment_ids": s, "loss_weight": w})
      for s, w in rows
    ]
    batch["loss_weight"] = np.stack([row["loss_weight"] for row in weighed])
  return batch


def mesh_of(name):
  sizes = MESHES[name]
  devices = jax.devices()[: int(np.prod(sizes))]
  return sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)), devices)


def train_on(names):
  """Mesh → what became of ten steps on it; "adapted_…": adapters on a 4-bit base."""
  report = {}
  for name in names:
    mesh = mesh_of(name.removeprefix("adapted_"))
    changes = dict(adapters=ADAPTERS) if name.startswith("adapted_") else {}
    run = tiny.Run(mesh, steps=STEPS, **changes)
    metrics = [run.step(batch_of(t)) for t in range(STEPS)]
    moments = by_path(run.state.opt[1][0].mu)  # of Adam, after the clipping
    report[name] = dict(
      losses=[float(m["loss"]) for m in metrics],
      norms=[float(m["grad_norm"]) for m in metrics],
      largest_position=int(metrics[0]["largest_position"]),
      sums=[float(np.abs(x).sum()) for x in jax.tree.leaves(run.state.params)],
      base=[  # parts of the base that are kept whole by each device, and the others
        sum(x.is_fully_replicated == whole for x in jax.tree.leaves(run.state.base))
        for whole in (True, False)
      ],
      shares={  # of a moment that one device holds
        path: x.addressable_shards[0].data.size / x.size for path, x in moments.items()
      },
    )
  return report


def updates_on(name, kind):
  """Sums over the third update of an optimizer, and over its state then.

  The matrices have sides that adafactor sums over.
  """
  mesh, shape = mesh_of(name), tiny.config(vocab_size=130, embed_dim=128, ffn_dim=160)
  update = optimizer.make(tiny.optim(kind=kind, clip_norm=0.0), STEPS)
  _, at = state_lib.shardings(mesh, update, shape)
  put = lambda seed: jax.device_put(tiny.params(shape, seed), at.params)
  with jax.set_mesh(mesh):
    state = jax.jit(update.init, out_shardings=at.opt)(put(0))
    step = jax.jit(update.update, out_shardings=(at.params, at.opt))
    for seed in (1, 2, 3):
      changes, state = step(put(seed), state, put(0))
  sums = jax.tree.map(lambda x: float(jnp.abs(x).sum()), (changes, state))
  return jax.tree.leaves(sums)


def pairs_on(name):
  """Losses and norms of two steps of DPO."""
  run = tiny.Run(mesh_of(name), loss=preference.PreferenceConfig("dpo", 0.3))
  metrics = [run.step(tiny.pair_batch(seed=t)) for t in range(2)]
  return [float(m[name]) for m in metrics for name in ("loss", "grad_norm")]


def elsewhere(function, arguments):
  """A function of this file in a process of 16 devices."""
  done = subprocess.run(
    [sys.executable, __file__, function, *arguments],
    env=tiny.environment(devices=16),
    stdout=subprocess.PIPE,
    timeout=300,
    check=True,
  )
  return json.loads(done.stdout)


@pytest.fixture(scope="module")
def trained():
  """What became of one device and of a mesh that splits everything."""
  return train_on(["one", "adapted_one"]) | elsewhere(
    "train_on", ["all", "adapted_all"]
  )


@pytest.fixture(scope="module")
def trained_on_all(trained):
  return trained | elsewhere("train_on", [x for x in MESHES if x not in trained])


@pytest.mark.multidevice
def test_sixteen_devices_equal_one(trained):
  check_equal(trained["all"], trained["one"])


@pytest.mark.slow
@pytest.mark.multidevice
@pytest.mark.parametrize("kind", ["adafactor", "muon"])
def test_updates_of_split_matrices_equal_those_of_whole_ones(kind):
  """Two layers on sixteen devices: most of them orthogonalise none."""
  got, one = elsewhere("updates_on", ["all", kind]), updates_on("one", kind)
  assert min(one[: len(jax.tree.leaves(tiny.params(tiny.config())))]) > 0
  np.testing.assert_allclose(got, one, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.multidevice
def test_preference_pairs_on_sixteen_devices_equal_one():
  got, one = elsewhere("pairs_on", ["all"]), pairs_on("one")
  np.testing.assert_allclose(got, one, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.multidevice
@pytest.mark.parametrize("name", sorted(MESHES.keys() - {"one", "all"}))
def test_eight_devices_equal_one(trained_on_all, name):
  check_equal(trained_on_all[name], trained_on_all["one"])


def check_equal(got, one):
  assert one["largest_position"] > tiny.SEQ_LEN
  np.testing.assert_allclose(got["losses"], one["losses"], rtol=1e-5)
  np.testing.assert_allclose(got["norms"], one["norms"], rtol=1e-4)
  np.testing.assert_allclose(got["sums"], one["sums"], rtol=1e-4)


@pytest.mark.multidevice
def test_adapters_on_sixteen_devices_equal_one(trained):
  one, got = trained["adapted_one"], trained["adapted_all"]
  assert one["losses"] != trained["one"]["losses"]
  np.testing.assert_allclose(got["losses"], one["losses"], rtol=1e-5)
  np.testing.assert_allclose(got["norms"], one["norms"], rtol=1e-4)
  np.testing.assert_allclose(got["sums"], one["sums"], rtol=1e-4)
  assert got["base"] == [0, 19]  # 7 matrices of values and tiles, 5 other weights
  assert set(got["shares"].values()) == {1 / 8}


@pytest.mark.multidevice
def test_moments_are_sharded_as_their_parameters(trained):
  matrix, norm = "layers/mlp/down/weight", "layers/mlp_norm/weight"
  of = shares(trained["all"])
  assert (of[matrix], of[norm]) == (8, 4)


@pytest.mark.slow
@pytest.mark.multidevice
def test_moments_on_other_meshes(trained_on_all):
  of = shares(trained_on_all["data2_fsdp2_tensor2"])
  assert (of["layers/mlp/down/weight"], of["layers/mlp_norm/weight"]) == (4, 2)
  assert set(shares(trained_on_all["data8"]).values()) == {1}
  assert set(shares(trained_on_all["fsdp8"]).values()) == {8}


def shares(run):
  """Path → devices that a moment is spread over."""
  return {path: round(1 / x) for path, x in run["shares"].items()}


if __name__ == "__main__":
  if sys.argv[1] == "train_on":
    print(json.dumps(train_on(sys.argv[2:])))
  else:
    function = {"updates_on": updates_on, "pairs_on": pairs_on}[sys.argv[1]]
    print(json.dumps(function(*sys.argv[2:])))
