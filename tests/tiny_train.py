"""Runs of the configs, in this process."""

import importlib.util

import tiny
from rich import console as rich_console

from skipalign_jax.training import run as run_lib


def load(name, variant="tiny"):
  spec = importlib.util.spec_from_file_location(
    name, tiny.ROOT / "configs" / f"{name}.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(variant)


def quiet():
  return rich_console.Console(file=open("/dev/null", "w"))


def run(config, folder):
  return run_lib.run(config, folder, quiet())
