"""The programs that a plan compiles: the real step, prefill and decode, traced."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import AbstractMesh, Mesh

from skipalign_jax.data import packing
from skipalign_jax.model import backends, decoder, inference, sharding
from skipalign_jax.planning import estimate
from skipalign_jax.training import optimizer, step
from skipalign_jax.training import state as state_lib


def trace(job: estimate.Job, mesh: Mesh | AbstractMesh) -> Any:
  """The job's program, traced on abstract arguments laid out over `mesh`.

  Returns:
    jax.stages.Traced: has `.jaxpr`, and `.lower()` if the mesh has devices.
  """
  build = _train if job.kind == "train" else _generate
  program, arguments = build(job, mesh)  # outside: it computes small arrays
  with set_mesh(mesh):
    return program.trace(*arguments)


def set_mesh(mesh: Mesh | AbstractMesh) -> contextlib.AbstractContextManager:
  """jax.set_mesh, for both kinds of mesh."""
  if isinstance(mesh, AbstractMesh):
    return jax.sharding.use_abstract_mesh(mesh)
  return jax.set_mesh(mesh)


def _train(job, mesh):
  config = ml_collections.ConfigDict(dict(job.optim))
  update = optimizer.make(config, job.steps)
  schedule = optimizer.schedule(config, job.steps)
  train_step, _ = step.compile_steps(job.recipe, update, schedule, mesh)
  state, state_at = state_lib.shardings(
    mesh, update, job.recipe.model, job.recipe.adapters
  )
  rows = sharding.batch_sharding(mesh)
  of_pairs = packing.PAIR_DTYPES if job.recipe.loss.has_pairs else {}
  arrays = packing.DTYPES | of_pairs
  batch = {
    name: _abstract((job.rows, job.length), dtype, rows)
    for name, dtype in arrays.items()
  }
  return train_step, (jax.tree.map(_at, state, state_at), batch)


def _generate(job, mesh):
  """Prompts as rows over data × fsdp; the cache's places over context."""
  config, dtype = job.recipe.model, jnp.dtype(job.recipe.compute_dtype)
  _, shapes = decoder.definition(config)
  params = jax.tree.map(
    lambda x, at: _abstract(x.shape, dtype, at),
    shapes,
    sharding.params_shardings(mesh, shapes),
  )
  rows = sharding.batch_sharding(mesh)
  programs = inference.programs(mesh, config)
  empty = jax.eval_shape(
    lambda: decoder.empty_cache(config, job.rows, job.length, dtype)
  )
  cache = jax.tree.map(_at, empty, inference.cache_shardings(mesh, config))
  backend = job.recipe.attention
  if job.new < job.length:
    backend = backends.choose_cached("gpu", job.new)  # as on any accelerator
  tokens_BL = _abstract((job.rows, job.new), jnp.int32, rows)
  arguments = (params, tokens_BL, tokens_BL, tokens_BL, cache)
  return programs.extend, (*arguments, config, job.recipe.compute_dtype, backend)


def _abstract(shape, dtype, at) -> jax.ShapeDtypeStruct:
  # Shardings without devices are for tracing only, which does not take them.
  if isinstance(at.mesh, AbstractMesh):
    return jax.ShapeDtypeStruct(shape, dtype)
  return jax.ShapeDtypeStruct(shape, dtype, sharding=at)


def _at(x, at) -> jax.ShapeDtypeStruct:
  return _abstract(x.shape, x.dtype, at)
