"""The training step against transformers + PyTorch and against google-tunix.

python benchmarks/train_step.py [--lengths=1024,2048] [--rows=1]
  [--dtypes=bfloat16,float32] [--rounds=5] [--out=FILE]
  [--contenders=ours,skip_outer,torch,torch_huge,tunix]

Each turn is two steps, of which the second is timed: while a process waits for the
others, the machine may take back the memory that it has freed.

Each row is one long dialogue, the same tokens and weights for all; loss on replies.
Several rows are read one after the other, with one update (grad_accum).
AdamW with the same settings, gradients clipped at norm 1; no recomputation except as
noted below.

ours        step.compile_steps, as `train` runs it; fp32 masters and moments,
            products in --dtypes; positions contiguous; remat "dots":
            norms, rotations and the gate's activation are computed again; arrays in
            huge pages (HUGE_PAGES), as `make quickstart` sets them
skip_outer  the same with the positions of SkipAlign
torch       LlamaForCausalLM, sdpa, eager; fp32 masters and moments; bfloat16 is
            autocast; AdamW by --torch_adamw, fused by default
torch_huge  the same with huge pages too
tunix       its Llama3 and the compiled step of its PeftTrainer. It has no compute
            dtype: with bfloat16, weights and moments are bfloat16 too, which is
            less work than ours. Its Llama3 ignores rope_theta (always 1e6).
            Without recomputation it needs 6 GiB at 1024 and 18 GiB at 2048 (bfloat16;
            it keeps all scores), so beyond 1024 --tunix_remat=auto lets it recompute
            each layer, which is one more forward pass
peak        a product of two 2048² matrices in XLA and in torch, for comparison;
            bf16 products accumulate in fp32

All first losses are checked: torch's against ours, tunix's against ours at its
theta. tunix reads one row only. Needs benchmarks/requirements.txt; missing contenders
are left out.
"""

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence

import harness
import jax
import jax.numpy as jnp
import numpy as np

from skipalign_jax import config as config_lib
from skipalign_jax.hf import reference, weights
from skipalign_jax.model import decoder, model_config
from skipalign_jax.training import step

STRATEGIES = {"ours": "contiguous", "skip_outer": "skip_outer"}
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
TUNIX_THETA = 1e6  # of its Llama3, for every config
PEAK_SIZE = 2048
# Maximum difference of the first losses: rounding, at losses of about 1 to 3.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


class Ours:
  def __init__(self, model: str, length: int, dtype: str, rows: int):
    variants = {
      name: {"positions.strategy": name, "batch_size": rows, "grad_accum": rows}
      for name in STRATEGIES.values()
    }
    self._steps = harness.Steps(model, dtype, "dots", **variants)
    self._batch = harness.dialogue_rows(model, length, rows)
    self._left = self._right = None
    self._dtype = dtype

  def step(self, strategy: str) -> tuple[float, float]:
    """(seconds, loss before the update)."""
    seconds, metrics = self._steps.step(strategy, self._batch)
    return seconds, metrics["loss"]

  def loss_at_theta(self, theta: float) -> float:
    """The loss at contiguous positions with plain rope of that base."""
    recipe = self._steps.recipes["contiguous"]
    rope = dataclasses.replace(recipe.model.rope, kind="none", theta=theta)
    shape = dataclasses.replace(recipe.model, rope=rope)
    run = jax.jit(step.make_eval_step(dataclasses.replace(recipe, model=shape)))
    with jax.set_mesh(self._steps.mesh):
      total, weight = run(self._steps.state.params, self._batch)
    return float(total / weight)

  def compile(self) -> float:
    """Seconds to compile one strategy."""
    begin = time.perf_counter()
    self._steps.compile("contiguous", self._batch)
    return time.perf_counter() - begin

  def peak(self) -> float:
    """FLOP/s of XLA's product."""
    a = jnp.ones((PEAK_SIZE, PEAK_SIZE), self._dtype)
    product = jax.jit(
      lambda a, b: jnp.matmul(
        a, b, preferred_element_type=jnp.float32, precision="highest"
      )
    )
    if self._dtype == "bfloat16":
      product = jax.jit(
        lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32)
      )
    return best_rate(lambda: jax.block_until_ready(product(a, a)))


class Torch:
  def __init__(self, model: str, length: int, dtype: str, rows: int, adamw: str):
    import torch
    import transformers

    opened = harness.open_model(model)
    shape = transformers.LlamaConfig(**model_config.to_hf(opened.config))
    shape._attn_implementation = "sdpa"
    self._model = transformers.LlamaForCausalLM(shape)
    state = {
      name: torch.tensor(tensor)
      for name, tensor in weights.hf_tensors(opened.weights, "float32")
    }
    missing, unexpected = self._model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    self._model.tie_weights()
    self._model.train()
    c = config_lib.default().optim
    self._optimizer = torch.optim.AdamW(
      self._model.parameters(),
      lr=c.learning_rate,
      betas=(c.beta1, c.beta2),
      eps=c.eps,
      weight_decay=c.weight_decay,
      **{"fused": {"fused": True}, "foreach": {"foreach": True}}.get(
        adamw, {"foreach": False}
      ),
    )
    self._clip_norm = c.clip_norm
    batch = harness.dialogue_rows(model, length, rows)
    tokens = torch.tensor(batch["tokens"], dtype=torch.long)
    learned = torch.tensor(batch["loss_weight"] > 0)
    labels = torch.where(learned, tokens, -100)
    self._learned = int((labels[:, 1:] != -100).sum())
    self._rows = [
      {
        "input_ids": tokens[i : i + 1],
        "labels": labels[i : i + 1],
        "attention_mask": torch.ones_like(tokens[:1]),
        "position_ids": torch.arange(length)[None],
      }
      for i in range(rows)
    ]
    self._dtype = getattr(torch, dtype)

  def step(self) -> tuple[float, float]:
    import torch

    begin = time.perf_counter()
    mixed, total = self._dtype == torch.bfloat16, 0.0
    for row in self._rows:
      with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        loss = self._model(
          **row, use_cache=False, num_items_in_batch=self._learned
        ).loss
      loss.backward()
      total += loss.item()
    torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip_norm)
    self._optimizer.step()
    self._optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - begin, total

  def peak(self) -> float:
    """FLOP/s of torch's product."""
    import torch

    a = torch.ones(PEAK_SIZE, PEAK_SIZE, dtype=self._dtype)
    return best_rate(lambda: a @ a)


class Tunix:
  def __init__(self, model: str, length: int, dtype: str, remat: str):
    import tunix_peer
    from flax import nnx
    from tunix.models.llama3 import model as llama3
    from tunix.sft import peft_trainer

    opened = harness.open_model(model)
    shape = tunix_peer.shape(opened.config, remat)
    graph, state = nnx.split(
      nnx.eval_shape(lambda: llama3.Llama3(shape, rngs=nnx.Rngs(0)))
    )
    params = tunix_params(opened.config, reference.load_params(opened, dtype))
    nnx.replace_by_pure_dict(state, params)
    del params
    trainer = tunix_peer.trainer(nnx.merge(graph, state))
    self._trainer = trainer.with_gen_model_input_fn(tunix_peer.model_input)
    self._step, _ = self._trainer.jit_train_and_eval_step(cache_nnx_graph=True)
    batch = harness.dialogue(model, length)
    self._batch = peft_trainer.TrainingInput(
      input_tokens=jnp.asarray(batch["tokens"]),
      input_mask=jnp.asarray(batch["loss_weight"] > 0),
    )
    gc.collect()

  def step(self) -> tuple[float, float]:
    begin = time.perf_counter()
    loss, _, norm = self._step(self._batch)
    jax.block_until_ready((loss, norm, self._trainer.model, self._trainer.optimizer))
    return time.perf_counter() - begin, float(loss)


def tunix_params(c: model_config.ModelConfig, ours: decoder.Params) -> dict:
  """Our parameters under tunix's names, in its shapes."""

  def of_layer(i):
    attn, mlp = ours["layers"]["attn"], ours["layers"]["mlp"]
    at = lambda part, name: part[name]["weight"][i]
    split = lambda weight_OI, heads: weight_OI.T.reshape(-1, heads, c.head_dim)
    norm = lambda name: {"w": ours["layers"][name]["weight"][i]}
    return {
      "input_layernorm": norm("attn_norm"),
      "post_attention_layernorm": norm("mlp_norm"),
      "attn": {
        "q_proj": {"w": split(at(attn, "q"), c.num_heads)},
        "k_proj": {"w": split(at(attn, "k"), c.num_kv_heads)},
        "v_proj": {"w": split(at(attn, "v"), c.num_kv_heads)},
        "o_proj": {"w": at(attn, "o").T.reshape(c.num_heads, c.head_dim, -1)},
      },
      "mlp": {
        f"{name}_proj": {"kernel": at(mlp, name).T} for name in ("gate", "up", "down")
      },
    }

  params = {
    "embedder": {"input_embedding": ours["embed"]["weight"]},
    "layers": {i: of_layer(i) for i in range(c.num_layers)},
    "final_norm": {"w": ours["norm"]["weight"]},
  }
  if not c.tie_embeddings:
    params["lm_head"] = {"w": ours["lm_head"]["weight"].T}
  return params


def best_rate(run) -> float:
  """FLOP/s of the fastest of ten products."""
  seconds = []
  for _ in range(11):
    begin = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - begin)
  return 2 * PEAK_SIZE**3 / min(seconds[1:])


def measure(args, length: int, dtype: str) -> dict:
  """All contenders at one length and dtype."""
  common = dict(model=args.model, length=length, dtype=dtype)
  of_rows = common | {"rows": args.rows}
  tunix_remat = args.tunix_remat
  if tunix_remat == "auto":
    tunix_remat = "none" if length <= 1024 else "decoder"
  make = {
    "ours": lambda: harness.Worker(Ours, HUGE_PAGES, **of_rows),
    "torch": lambda: harness.Worker(Torch, **of_rows, adamw=args.torch_adamw),
    "torch_huge": lambda: harness.Worker(
      Torch, HUGE_PAGES, **of_rows, adamw=args.torch_adamw
    ),
    "tunix": lambda: harness.Worker(Tunix, **common, remat=tunix_remat),
  }
  wanted = args.contenders.split(",")
  workers = harness.start({name: make[name] for name in make if name in wanted})
  running = {n: w for n, w in workers.items() if isinstance(w, harness.Worker)}
  errors = {n: w for n, w in workers.items() if isinstance(w, str)}
  ours = running["ours"]
  try:
    compile_seconds = ours("compile")
    other_theta = ours("loss_at_theta", theta=TUNIX_THETA) if "tunix" in running else 0
    turns = steps_of(running, wanted)
    # Not timed: the first round compiles, the second uses all memory once.
    first, failed = harness.rounds(turns, 2)
    losses = {name: results[0][1] for name, results in first.items()}
    print(f"losses before the first update: {losses}", flush=True)
    for name in losses.keys() & {"torch", "torch_huge"}:
      check_loss(name, losses[name], losses["ours"], dtype)
    if "tunix" in losses:
      check_loss("tunix", losses["tunix"], other_theta, dtype)
    measured = {name: turn for name, turn in turns.items() if name in first}
    for name, worker in running.items():
      if name in ("ours", "torch") and (name == "ours" or name in first):
        measured[f"peak of {name}"] = lambda worker=worker: worker("peak")
    results, failed_later = harness.rounds(measured, args.rounds)
  finally:
    for worker in running.values():
      worker.close()
  peaks = {
    name.removeprefix("peak of "): max(results.pop(name))
    for name in list(results)
    if name.startswith("peak of ")
  }
  seconds = {name: [s for s, _ in turns] for name, turns in results.items()}
  return {
    "rows": args.rows,
    "length": length,
    "dtype": dtype,
    "tunix_remat": tunix_remat,
    "first_losses": losses,
    "loss_at_tunix_theta": other_theta,
    "compile_seconds_ours": compile_seconds,
    "peak_flops": peaks,
    "seconds": {name: harness.spread(x) for name, x in seconds.items()},
    "ratios": {
      name: harness.compare("ours", seconds["ours"], name, seconds[name])
      for name in seconds
      if name != "ours"
    },
    "left_out": errors | failed | failed_later,
  }


def steps_of(
  running: dict[str, harness.Worker], wanted: Sequence[str]
) -> dict[str, Callable]:
  """Name → two steps: seconds of the second, and the loss before the first."""
  steps = {
    name: lambda strategy=strategy: running["ours"]("step", strategy=strategy)
    for name, strategy in STRATEGIES.items()
    if name in wanted
  }
  steps |= {
    name: lambda worker=worker: worker("step")
    for name, worker in running.items()
    if name != "ours"
  }

  def twice(step):
    (_, loss), (seconds, _) = step(), step()
    return seconds, loss

  return {name: lambda step=step: twice(step) for name, step in steps.items()}


def check_loss(name: str, theirs: float, ours: float, dtype: str) -> None:
  """Stops if a contender does not compute the same loss."""
  if not np.isclose(theirs, ours, rtol=0, atol=TOLERANCE[dtype]):
    raise SystemExit(
      f"{name}'s first loss is {theirs}, ours {ours}: not the same work, no comparison"
    )


def show(config: model_config.ModelConfig, result: dict) -> None:
  """Prints one length and dtype."""
  rows, length, dtype = result["rows"], result["length"], result["dtype"]
  work = {name: rows * n for name, n in harness.flops(config, length).items()}
  peaks = result["peak_flops"]
  peak = max(peaks.values())
  cells = []
  for name, seconds in result["seconds"].items():
    rate = lambda flops, s=seconds["median"]: 100 * flops / s / peak
    cells.append(
      [
        name,
        harness.show(seconds),
        f"{rows * length / seconds['median']:.0f}",
        f"{rate(work['products']):.1f} %",
        f"{rate(sum(work.values())):.1f} %",
      ]
    )
  print(f"\n{rows} x {length} tokens, {dtype}")
  head = [
    "contender",
    "seconds per step",
    "tok/s",
    "6ND / peak",
    "with attention / peak",
  ]
  print(harness.table(head, cells))
  for name, ratio in result["ratios"].items():
    print(f"  {name}: {ratio['text']}")
  rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in peaks.items())
  print(f"  best {PEAK_SIZE}² product, GFLOP/s: {rates}; shares are of the larger")
  if "tunix" in result["seconds"]:
    print(f"  tunix ran with remat {result['tunix_remat']}")
  for name, error in result["left_out"].items():
    print(f"  {name} left out: {error}")


def main() -> None:
  parser = harness.arguments(__doc__)
  parser.add_argument("--lengths", default="1024,2048")
  parser.add_argument("--rows", type=int, default=1)
  parser.add_argument("--dtypes", default="bfloat16,float32")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--contenders", default="ours,skip_outer,torch,tunix")
  parser.add_argument(
    "--torch_adamw", default="fused", choices=("fused", "foreach", "loop")
  )
  parser.add_argument(
    "--tunix_remat", default="auto", choices=("auto", "none", "block", "decoder")
  )
  args = parser.parse_args()
  before = harness.environment()
  config = harness.open_model(args.model).config
  results = []
  for dtype in args.dtypes.split(","):
    for length in harness.numbers(args.lengths):
      results.append(measure(args, length, dtype))
      results[-1]["flops"] = harness.flops(config, length)
      show(config, results[-1])
  harness.report(args, before, results)


if __name__ == "__main__":
  main()
