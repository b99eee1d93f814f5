"""The mesh, and one table that says how each parameter is laid out on it.

Axes: `data` replicates parameters, `fsdp` shards them (and gradients and the
optimizer's state: ZeRO-3), `tensor` splits heads and ffn, `context` splits the places
of a row and shards parameters as `fsdp` does. Rows of a batch are spread over
data × fsdp.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from skipalign_jax import config as config_lib
from skipalign_jax.runtime import errors

AXES = ("data", "fsdp", "tensor", "context")
BATCH = ("data", "fsdp")
SHARDS = ("fsdp", "context")  # axes over which parameters are split
AnyMesh = Mesh | AbstractMesh

# Path of a parameter (layers are stacked on axis 0) → its spec. Each parameter
# matches exactly one row.
TABLE = (
  (r"(embed|lm_head)/weight", PartitionSpec("tensor", SHARDS)),  # VD
  (r"layers/attn/[qkv]/weight", PartitionSpec(None, "tensor", SHARDS)),  # OI
  (r"layers/attn/[qkv]/bias", PartitionSpec(None, "tensor")),
  (r"layers/attn/o/weight", PartitionSpec(None, SHARDS, "tensor")),
  (r"layers/attn/o/bias", PartitionSpec(None, SHARDS)),
  (r"layers/attn/[qk]_norm/weight", PartitionSpec(None, None)),  # H, of all heads
  (r"layers/mlp/(gate|up)/weight", PartitionSpec(None, "tensor", SHARDS)),
  (r"layers/mlp/(gate|up)/bias", PartitionSpec(None, "tensor")),
  (r"layers/mlp/down/weight", PartitionSpec(None, SHARDS, "tensor")),
  (r"layers/mlp/down/bias", PartitionSpec(None, SHARDS)),
  (r"layers/(attn|mlp)_norm/weight", PartitionSpec(None, SHARDS)),
  (r"norm/weight", PartitionSpec(SHARDS)),
)


def make_mesh(sizes: dict[str, int], devices: list[Any] | None = None) -> Mesh:
  """A mesh over all devices; one size may be -1, for all devices that are left."""
  check_sizes(sizes)
  devices = jax.devices() if devices is None else devices
  shape = [sizes[axis] for axis in AXES]
  fixed = int(np.prod([size for size in shape if size != -1]))
  if -1 in shape and len(devices) % fixed == 0:
    shape[shape.index(-1)] = len(devices) // fixed
  if int(np.prod(shape)) != len(devices):
    raise errors.UserError(
      f"mesh {sizes} does not fit {len(devices)} devices; change config.mesh"
    )
  kinds = (AxisType.Auto,) * len(AXES)
  return Mesh(_arranged(shape, devices), AXES, axis_types=kinds)


def _arranged(shape: list[int], devices: list[Any]) -> np.ndarray:
  """Devices in the shape of a mesh, of which the last axes have the fastest links.

  A slice is what JAX calls the TPUs, or the GPUs of a host, that links connect. The
  first axes go over slices, as far as their sizes allow. `jax.make_mesh` takes one
  slice only, and of most TPUs no mesh that splits an axis of the slice.
  """
  slices: dict[int, int] = {}
  for device in devices:
    index = getattr(device, "slice_index", 0)
    slices[index] = slices.get(index, 0) + 1
  if len(slices) == 1 or len(set(slices.values())) > 1:  # hosts may differ in size
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  between, left = [], len(slices)
  for size in shape:
    between.append(math.gcd(size, left))
    left //= between[-1]
  within = [size // over for size, over in zip(shape, between, strict=True)]
  return mesh_utils.create_hybrid_device_mesh(
    within, between, devices, allow_split_physical_axes=True
  )


def abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
  """A mesh without devices: enough to trace, not to compile."""
  kinds = (AxisType.Auto,) * len(AXES)
  return AbstractMesh(tuple(sizes[axis] for axis in AXES), AXES, axis_types=kinds)


def check_sizes(sizes: dict[str, int]) -> None:
  """Checks the sizes of a mesh without its devices.

  Raises:
    UserError: a size that the config does not allow, or more than one -1.
  """
  config_lib.check_section("mesh", sizes)
  open_axes = [f"mesh.{axis}=-1" for axis, size in sizes.items() if size == -1]
  if len(open_axes) > 1:
    raise errors.UserError(
      f"{' and '.join(open_axes)}: only one axis can take the devices that the others "
      "leave; set the size of the other"
    )


def process_share(mesh: Mesh) -> tuple[int, int]:
  """(index, count): this process feeds share `index` of `count` of each batch.

  Processes that differ only in tensor or context coordinates feed the same rows.

  Raises:
    UserError: the shares of two processes overlap in part.
  """
  blocks = mesh.devices.reshape(row_shards(mesh), -1)
  blocks_of: dict[int, set[int]] = {}
  for block, devices in enumerate(blocks):
    for device in devices:
      blocks_of.setdefault(device.process_index, set()).add(block)
  shares = sorted({tuple(sorted(mine)) for mine in blocks_of.values()})
  if sum(map(len, shares)) != len(blocks) or len(set(map(len, shares))) != 1:
    raise errors.UserError(
      f"mesh {dict(mesh.shape)} cuts rows across its {len(blocks_of)} processes; let "
      "tensor x context divide the devices of a process, or be a multiple of them; "
      "where hosts have different numbers of devices, start a process for each device"
    )
  mine = tuple(sorted(blocks_of[jax.process_index()]))
  return shares.index(mine), len(shares)


def spec(path: str) -> PartitionSpec:
  """The one row of the table that matches `path`."""
  rows = [spec for pattern, spec in TABLE if re.fullmatch(pattern, path)]
  assert len(rows) == 1, f"{path} matches {len(rows)} rows of the sharding table"
  return rows[0]


def path_of(key_path: tuple[Any, ...]) -> str:
  """'layers/attn/q/weight' from a pytree key path of nested dicts."""
  return "/".join(str(key.key) for key in key_path)


def params_shardings(mesh: Mesh, params: Any) -> Any:
  """A NamedSharding for each parameter of a nested dict.

  A dimension that its mesh axis does not divide stays whole.
  """

  def of(key_path, param):
    return NamedSharding(mesh, fit(spec(path_of(key_path)), param.shape, mesh))

  return jax.tree_util.tree_map_with_path(of, params)


def placer(shardings: Any) -> Callable[..., jax.Array]:
  """Creates parameters on their devices: a `hf.reference.Place`.

  Args:
    shardings: where each parameter lives, a nested dict like that of parameters.
  """
  leaves = jax.tree_util.tree_leaves_with_path(shardings)
  by_path = {path_of(path): where for path, where in leaves}

  def place(path, shape, dtype, read):
    return jax.make_array_from_callback(
      shape, by_path[path], lambda index: read(index).astype(dtype)
    )

  return place


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over data × fsdp."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same value on every device."""
  return NamedSharding(mesh, PartitionSpec())


def constrain_places(x_BLD: jax.Array) -> jax.Array:
  """Keeps activations spread over rows and places where a mesh is set."""
  return constrain(x_BLD, PartitionSpec(BATCH, ("context", "tensor")))


def constrain_layers(x: jax.Array) -> jax.Array:
  """Spreads stacked layers over all devices, which then have whole matrices.

  Their number need not divide that of the devices.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(AXES))


def constrain_replicated(x: jax.Array) -> jax.Array:
  """The same value on every device, so that each process can read it."""
  return constrain(x, PartitionSpec())


def over_heads(attend: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Runs an attention kernel on each device's rows and heads, with whole rows.

  `attend(q_BLNH, k_BLKH, v_BLKH, segment_ids_BL, …)` does not use the mesh; k and v
  may have another length than q, as those of a cache do. Between layers the places of
  a row are split over `context`; here rows are whole and the heads are split instead,
  by one all-to-all each way (DeepSpeed-Ulysses, 2309.14509). So every kernel works for
  every mesh, and the causal mask gives all devices the same work. If there are fewer kv
  heads than devices, they are repeated.
  """

  def attend_on_mesh(q_BLNH, k_BLKH, v_BLKH, *others):
    if not is_split():
      return attend(q_BLNH, k_BLKH, v_BLKH, *others)
    mesh = jax.sharding.get_abstract_mesh()
    # Constrained here, so that projections run on each device's own places.
    places = PartitionSpec(BATCH, "context", "tensor")
    q_BLNH, k_BLKH, v_BLKH = (constrain(x, places) for x in (q_BLNH, k_BLKH, v_BLKH))
    B, _, N, _ = q_BLNH.shape
    K = k_BLKH.shape[2]
    repeats = math.lcm(K, head_shards(mesh)) // K
    if repeats > 1:
      k_BLKH, v_BLKH = (jnp.repeat(x, repeats, axis=2) for x in (k_BLKH, v_BLKH))
    rows = BATCH if B % row_shards(mesh) == 0 else None
    heads = PartitionSpec(rows, None, ("tensor", "context"))
    assert N % (K * repeats) == 0, (N, K, repeats)
    out_BLNH = jax.shard_map(
      attend,
      in_specs=(
        *(heads, heads, heads),
        *(PartitionSpec(*[rows][: x.ndim]) for x in others),
      ),
      out_specs=heads,
      check_vma=False,
    )(q_BLNH, k_BLKH, v_BLKH, *others)
    return constrain(out_BLNH, places)

  return attend_on_mesh


def is_split() -> bool:
  """Whether a mesh of several devices is set."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.size > 1


def platform() -> str:
  """Platform of the mesh that is set: "cpu", "gpu" or "tpu"; else JAX's default one."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is None:
    return jax.default_backend()
  if hasattr(device, "platform"):
    return device.platform
  kind = device.device_kind.lower()  # all that jax has before 0.10.1
  return kind if kind == "cpu" else "tpu" if kind.startswith("tpu") else "gpu"


def cache_spec(mesh: AnyMesh, num_kv_heads: int) -> PartitionSpec:
  """Of a KV cache [layers, B, S, K, H]: places over context, heads over tensor."""
  heads = "tensor" if num_kv_heads % mesh.shape["tensor"] == 0 else None
  return PartitionSpec(None, BATCH, "context", heads, None)


def write_places(
  cached_ABSKH: jax.Array, new_BLKH: jax.Array, layer: jax.Array, start: jax.Array
) -> jax.Array:
  """The cache with L new places of one layer in it, from `start` on.

  If the places of a cache are split, each device picks its own places of a part: for
  an update of a slice, XLA would gather the whole cache first.
  """
  L, all_places = new_BLKH.shape[1], cached_ABSKH.shape[2]
  mesh = jax.sharding.get_abstract_mesh()
  if L in (1, all_places) or mesh.empty or mesh.shape["context"] == 1:
    at = (layer, 0, start, 0, 0)
    return jax.lax.dynamic_update_slice(cached_ABSKH, new_BLKH[None], at)

  def write_own(cached_ABSKH, new_BLKH, layer, start):
    S = cached_ABSKH.shape[2]
    source_S = jax.lax.axis_index("context") * S + jnp.arange(S) - start
    new_BSKH = jnp.take(new_BLKH, source_S, axis=1, mode="clip")
    is_new_S11 = ((source_S >= 0) & (source_S < L))[:, None, None]
    old_BSKH = jax.lax.dynamic_index_in_dim(cached_ABSKH, layer, keepdims=False)
    written_BSKH = jnp.where(is_new_S11, new_BSKH, old_BSKH)
    return jax.lax.dynamic_update_index_in_dim(cached_ABSKH, written_BSKH, layer, 0)

  cache_at = cache_spec(mesh, new_BLKH.shape[2])
  _, rows, _, heads, _ = cache_at
  return jax.shard_map(
    write_own,
    in_specs=(cache_at, PartitionSpec(rows, None, heads), *2 * [PartitionSpec()]),
    out_specs=cache_at,
    check_vma=False,
  )(cached_ABSKH, new_BLKH, layer, start)


def row_shards(mesh: AnyMesh) -> int:
  """Devices over which the rows of a batch are split."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def head_shards(mesh: AnyMesh) -> int:
  """Devices over which attention splits its heads."""
  return mesh.shape["tensor"] * mesh.shape["context"]


def fit(given: PartitionSpec, shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
  """The spec without axes that do not divide their dimension."""

  def size(axes):
    names = (axes,) if isinstance(axes, str) else axes
    return math.prod(mesh.shape[name] for name in names)

  return PartitionSpec(
    *(
      axes if axes and length % size(axes) == 0 else None
      for axes, length in zip(given, shape, strict=False)
    )
  )


def part_of(
  given: PartitionSpec, shape: tuple[int, ...], kept: tuple[int, ...]
) -> PartitionSpec:
  """The spec of an array with the shape `kept`: some axes of one of `shape`.

  Of axes with the same length the last ones count as kept. An axis whose length is
  none of the array's is not split.
  """
  axes, left = [], list(zip(shape, given, strict=True))
  for length in reversed(kept):
    at = next((i for i in reversed(range(len(left))) if left[i][0] == length), None)
    axes.append(None if at is None else left[at][1])
    left = left if at is None else left[:at]
  return PartitionSpec(*reversed(axes))


def constrain(x: jax.Array, given: PartitionSpec) -> jax.Array:
  """The spec on the mesh that is set, without axes that do not divide."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, fit(given, x.shape, mesh))
