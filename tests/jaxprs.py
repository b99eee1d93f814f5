"""What a traced program does."""

import jax


def sizes(jaxpr):
  """Size of each array that a program makes, inner programs included."""
  for equation in jaxpr.eqns:
    yield from (out.aval.size for out in equation.outvars)
    for value in jax.tree.leaves(
      equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
    ):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from sizes(inner)
