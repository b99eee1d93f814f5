"""Model references: HF folders, workdirs, what is refused and how it says so."""

import dataclasses
import json
import pathlib
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
import tiny_files as tiny

from skipalign_jax.hf import (
  export,
  names,
  native,
  reference,
  safetensors_files,
  weights,
)
from skipalign_jax.runtime import checksums, errors, files


def refused(ref, *parts):
  """Opening `ref` fails with one message that contains all `parts`."""
  with pytest.raises(errors.UserError) as caught:
    reference.open_model(str(ref))
  for part in parts:
    assert part in str(caught.value), str(caught.value)


def test_names_translate_both_ways():
  for name in ("llama2_gqa", "smollm2_tied", "biases", "qwen2", "qwen3"):
    config = tiny.config(name)
    found = {}
    for hf, shape in names.hf_shapes(config).items():
      path, layer = names.path_of_hf(hf)
      assert names.hf_name(path, layer or 0) == hf
      found[path] = shape if layer is None else (config.num_layers, *shape)
    assert found == names.expected_shapes(config)
    assert set(names.gguf_names(config)) == set(names.hf_shapes(config))
    sizes = [np.prod(shape) for shape in found.values()]
    assert sum(sizes) == config.num_params()
  with pytest.raises(errors.UserError, match="not a tensor of a supported model"):
    names.path_of_hf("model.layers.0.mlp.experts.w1")


def test_copies_of_a_model_have_a_sample_that_others_do_not(tmp_path):
  folders = [
    tiny.hf_folder(tmp_path / f"{seed}-{shards}", "biases", np.float32, shards, seed)
    for shards, seed in ((1, 0), (3, 0), (1, 1))
  ]
  one, copy, other = (
    weights.sample(reference.open_model(str(folder)).weights) for folder in folders
  )
  assert one == copy != other


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize("shards", [1, 3])
def test_hf_folder(tmp_path, shards, dtype):
  folder = tiny.hf_folder(tmp_path / "m", "biases", dtype, shards)
  opened = reference.open_model(str(folder))
  assert opened.kind == "hf"
  assert opened.config == tiny.config("biases")
  assert opened.generation_config == {"temperature": 0.5}
  expected = tiny.tensors("biases", dtype)
  for path, parameter in opened.weights.items():
    assert parameter.dtype == dtype
    whole = parameter.read()
    assert whole.shape == parameter.shape and whole.dtype == dtype
    for i in range(len(whole) if names.is_stacked(path) else 1):
      ours = parameter.layer(i) if names.is_stacked(path) else whole
      np.testing.assert_array_equal(ours, expected[names.hf_name(path, i)])


@pytest.mark.parametrize("layer", [0, 1])
def test_layers_that_are_stored_in_two_types_lose_nothing(tmp_path, layer):
  """Norms of some layers in fp32: the parameter has fp32 for all of them."""
  folder, stored = tiny.hf_folder(tmp_path / "m"), tiny.tensors()
  name = names.hf_name("layers/attn_norm/weight", layer)
  fine = stored[name].astype(np.float32) + np.float32(1e-4)  # bf16 would round it
  safetensors.numpy.save_file(stored | {name: fine}, folder / "model.safetensors")
  parameter = reference.open_model(str(folder)).weights["layers/attn_norm/weight"]
  assert parameter.dtype == parameter.read().dtype == np.float32
  np.testing.assert_array_equal(parameter.layer(layer), fine)
  other = names.hf_name("layers/attn_norm/weight", 1 - layer)
  np.testing.assert_array_equal(parameter.layer(1 - layer), stored[other])


def test_any_block_equals_the_slice_of_the_whole(tmp_path):
  opened = reference.open_model(str(tiny.hf_folder(tmp_path / "m", shards=2)))
  for path in ("embed/weight", "layers/mlp/down/weight", "layers/attn_norm/weight"):
    parameter = opened.weights[path]
    whole = parameter.read(dtype="float32")
    last = parameter.shape[-1]
    for index in [
      (slice(1, 2),),
      (slice(None), slice(3, 7)),
      (slice(0, 2), slice(None), slice(last // 2, last)),
    ]:
      index = index[: len(parameter.shape)]
      np.testing.assert_array_equal(parameter.read(index, "float32"), whole[index])


def test_load_params_places_each_parameter_once(tmp_path):
  opened = reference.open_model(str(tiny.hf_folder(tmp_path / "m")))
  seen = []

  def place(path, shape, dtype, read):
    seen.append(path)
    block = read((slice(0, 1),))
    assert block.dtype == dtype == jnp.dtype("float32")
    return jnp.zeros(shape, dtype).at[:1].set(block)

  tree = reference.load_params(opened, "float32", place)
  assert seen == list(names.expected_shapes(opened.config))
  shapes = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  assert shapes == names.expected_shapes(opened.config)
  whole = reference.load_params(opened, "bfloat16")
  assert whole["norm"]["weight"].dtype == jnp.bfloat16


def workdir(folder, steps=(4, 20)):
  """A training workdir as Orbax's CheckpointManager writes it."""
  config = tiny.config()
  rng = np.random.default_rng(0)
  tree = {}
  for path, shape in names.expected_shapes(config).items():
    node = tree
    *parents, leaf = path.split("/")
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = jnp.asarray(rng.standard_normal(shape), jnp.float32)
  folder.mkdir()
  native.write_config(folder, native.Description(config, config={"seed": 7}))
  tiny.tokenizer().save_pretrained(folder / "tokenizer")
  manager = ocp.CheckpointManager((folder / "checkpoints").absolute())
  for step in steps:
    scaled = jax.tree.map(lambda x, step=step: x * step, tree)
    items = ocp.args.Composite(
      params=ocp.args.StandardSave(scaled), opt=ocp.args.StandardSave({"m": tree})
    )
    manager.save(step, args=items)
  manager.close()
  return tree


def test_workdir_latest_and_given_step(tmp_path):
  tree = workdir(tmp_path / "run")
  ref = str(tmp_path / "run")
  for given, step in ((ref, 20), (f"{ref}@4", 4)):
    opened = reference.open_model(given)
    assert (opened.kind, opened.location.step) == ("workdir", step)
    loaded = reference.load_params(opened)
    jax.tree.map(
      lambda ours, theirs, step=step: np.testing.assert_array_equal(
        ours, theirs * step
      ),
      loaded,
      tree,
    )
  q = opened.weights["layers/attn/q/weight"]
  expected = np.asarray(tree["layers"]["attn"]["q"]["weight"] * 4)
  np.testing.assert_array_equal(q.read((slice(1, 2), slice(2, 5))), expected[1:2, 2:5])
  np.testing.assert_array_equal(
    q.read((), "bfloat16"), expected.astype(ml_dtypes.bfloat16)
  )
  assert len(reference.load_tokenizer(ref)) == len(tiny.tokenizer())
  # Not complete, so never chosen.
  for step, file in ((99, "params/_METADATA"), (98, "_CHECKPOINT_METADATA")):
    (tmp_path / f"run/checkpoints/{step}/params").mkdir(parents=True)
    assert reference.open_model(ref).location.step == 20
    (tmp_path / f"run/checkpoints/{step}" / file).write_text("{}")
    assert reference.open_model(ref).location.step == 20


def test_workdir_mistakes(tmp_path):
  workdir(tmp_path / "run", steps=(4,))
  refused(f"{tmp_path}/run@7", "no checkpoint of step 7", "4")
  refused(f"{tmp_path}/run@last", "must be an integer", "'last'")
  (tmp_path / "new").mkdir()
  native.write_config(tmp_path / "new", native.Description(tiny.config()))
  refused(tmp_path / "new", "no complete checkpoint")
  (tmp_path / "new/config.json").write_text('{"format": "skipalign_jax"}')
  refused(tmp_path / "new", "no complete checkpoint")
  with pytest.raises(errors.UserError, match="damaged"):
    native.read_config(tmp_path / "new")
  native.write_config(tmp_path / "run", native.Description(tiny.config("yi")))
  refused(tmp_path / "run", "config.json says")
  native.write_config(tmp_path / "run", native.Description(tiny.config("biases")))
  refused(tmp_path / "run", "arrays are not those of")
  tied = dataclasses.replace(tiny.config(), tie_embeddings=True)
  native.write_config(tmp_path / "run", native.Description(tied))  # one array too many
  refused(tmp_path / "run", "arrays are not those of", "lm_head/weight")


def test_a_damaged_checkpoint_is_not_read(tmp_path, monkeypatch):
  """All files of its parameters are checked, and no others."""
  folder = tmp_path / "run"
  workdir(folder)
  for step in (4, 20):
    checksums.write(folder / "checkpoints" / str(step))
  params = folder / "checkpoints/20/params"
  stored = sorted(path for path in params.rglob("*") if path.is_file())
  largest = max(stored, key=lambda path: path.stat().st_size)
  assert len(stored) > 3
  for path in stored:
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 4
    for damaged in (bytes(flipped), whole[:-1]):
      path.write_bytes(damaged)
      refused(folder, "20 is damaged", path.name, f"as {folder}@STEP; there are 4.")
    path.write_bytes(whole)
  # Opening does not read the arrays; the first reading does, once, and all of them.
  monkeypatch.setattr(native, "_INDEX_BYTES", largest.stat().st_size - 1)
  measured, measure = [], checksums.size_and_checksum
  noted = lambda path: measured.append(path) or measure(path)
  monkeypatch.setattr(checksums, "size_and_checksum", noted)
  (folder / "checkpoints/20/opt/_METADATA").write_text("x")
  opened = reference.open_model(str(folder))
  assert largest not in measured and params / "manifest.ocdbt" in measured
  for _ in range(2):
    reference.load_params(opened)
  assert measured.count(largest) == 1
  flipped = bytearray(largest.read_bytes())
  flipped[-9] ^= 1
  largest.write_bytes(flipped)
  opened = reference.open_model(str(folder))
  for path in ("embed/weight", "norm/weight"):
    with pytest.raises(errors.UserError, match=r"20 is damaged: .* its checksum"):
      opened.weights[path].read()
  shutil.rmtree(folder / "checkpoints/4")
  monkeypatch.setattr(native, "_INDEX_BYTES", 2**30)
  refused(folder, "the only checkpoint")
  (folder / "checkpoints/20/seal.json").unlink()  # an older version's
  assert reference.open_model(str(folder)).weights["norm/weight"].read().size


@pytest.mark.parametrize("ours", [False, True])
def test_a_checkpoint_that_goes_while_it_is_read_is_no_zeros(tmp_path, ours):
  """A run deletes all but its latest checkpoints, also one that is being exported."""
  folder = tmp_path / "run"
  workdir(folder, steps=(0, 4))  # step 0 has zeros, which are stored too
  if ours:
    whole = reference.open_model(f"{folder}@4").weights.values()
    native.write_params(folder, 9, whole)
  zeros = reference.load_params(reference.open_model(f"{folder}@0"))
  assert not any(np.asarray(x).any() for x in jax.tree.leaves(zeros))
  opened = reference.open_model(str(folder))
  params = folder / "checkpoints" / str(opened.location.step) / "params"
  opened.weights["norm/weight"].read()
  (folder / "checkpoints" / str(opened.location.step) / "seal.json").unlink(True)
  for path in params.iterdir():  # rmtree is on its way
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  with pytest.raises(errors.UserError, match="damaged checkpoint"):
    opened.weights["embed/weight"].read()
  shutil.rmtree(params)
  with pytest.raises(errors.UserError, match="was deleted while it was read"):
    opened.weights["layers/attn/q/weight"].read()


def test_a_workdir_from_before_there_were_families_is_a_llama(tmp_path):
  native.write_config(tmp_path, native.Description(tiny.config()))
  written = json.loads((tmp_path / "config.json").read_text())
  for key in ("family", "nope_layers"):
    del written["model_config"][key]
  (tmp_path / "config.json").write_text(json.dumps(written))
  assert native.read_config(tmp_path).model_config == tiny.config()


def test_references_that_lead_nowhere(tmp_path):
  for ref in ("", tmp_path / "absent", "./a/b", "a/b/c/d"):
    refused(ref, "a model reference is one of", "path/to/model.gguf")
  (tmp_path / "file.txt").write_text("x")
  refused(tmp_path / "file.txt", "not a .gguf")
  (tmp_path / "empty").mkdir()
  refused(tmp_path / "empty", "no config.json")
  tiny.gguf_file(tmp_path / "empty/m.gguf")
  refused(tmp_path / "empty", "Did you mean", "m.gguf")
  (tmp_path / "fake.gguf").write_text("not a model")
  refused(tmp_path / "fake.gguf", "not a GGUF file")
  tiny.hf_folder(tmp_path / "hf")
  refused(f"{tmp_path}/hf@3", "only a training folder has steps")


def test_hub_failure_explains_itself(monkeypatch):
  call = {}

  def offline(name, **kwargs):
    call.update(kwargs, name=name)
    raise OSError("no route to host")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
  refused("org/model@abc", "no route to host", "network", "hf auth login", "local")
  assert (call["name"], call["revision"]) == ("org/model", "abc")
  wanted = ["config.json", "model.safetensors", "chat_template.jinja",
            "tokenizer.model", "merges.txt",
            "additional_chat_templates/tool_use.jinja"]  # fmt: skip
  others = ["consolidated.safetensors", "original/params.json", "pytorch_model.bin",
            "checkpoint-5/adapter_model.safetensors", "original/tokenizer.model",
            "modeling.py", "onnx/model.onnx", "README.md"]  # fmt: skip
  patterns = {key: call[key] for key in ("allow_patterns", "ignore_patterns")}
  found = huggingface_hub.utils.filter_repo_objects([*wanted, *others], **patterns)
  assert list(found) == wanted


def test_hub_download_opens_as_a_folder(monkeypatch, tmp_path):
  folder = tiny.hf_folder(tmp_path / "snapshot")
  monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(folder))
  assert reference.open_model("org/model").config == tiny.config()


def test_a_repository_without_safetensors_says_what_to_do(monkeypatch, tmp_path):
  """As those of GGUF files, which have a config.json or none."""
  folder = tiny.hf_folder(tmp_path / "snapshot")
  (folder / "model.safetensors").unlink()
  monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(folder))
  for _ in range(2):
    refused(
      "hub:org/m-GGUF@main", "hf download org/m-GGUF FILE.gguf", "save_pretrained"
    )
    reference.load_tokenizer("hub:org/m-GGUF")
    (folder / "config.json").unlink(missing_ok=True)


@pytest.fixture
def home(tmp_path, monkeypatch):
  """The current folder, with a folder `runs`; and the names that are downloaded."""
  (tmp_path / "here/runs").mkdir(parents=True)
  monkeypatch.chdir(tmp_path / "here")
  monkeypatch.setenv("HOME", str(tmp_path / "here"))
  cache = tmp_path / "cache"
  (cache / "models--runs--cached/snapshots").mkdir(parents=True)
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
  snapshot, asked = tiny.hf_folder(tmp_path / "snapshot"), []

  def download(name, revision, **kwargs):
    asked.append((name, revision))
    return str(snapshot)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  return asked


@pytest.mark.parametrize(
  "ref",
  ["./a", "../a", "../a/b", "/a", "/a/b", "~/a", "~nobody/a", "a", "a/b/c",
   "a/b.gguf", "a/b/", "runs/mine", "runs/mine@30", "runs/cached/", "gone/mine",
   "a/b\nc", "\udcff/a", "a\0/b", "x/" + 5000 * "y/", "ä/b", "a b/c", "a/b@", "@3",
   "C:\\a\\b", "http://a/b", "hf.co/a/b"],
  ids=lambda ref: ascii(ref)[:20],
)  # fmt: skip
def test_a_missing_path_is_not_looked_for_on_the_hub(home, ref):
  pathlib.Path("gone").symlink_to("/nowhere/at/all")  # a disk that is not mounted
  for opening in (reference.open_model, reference.load_tokenizer):
    with pytest.raises(errors.UserError, match="no such file or folder") as caught:
      opening(ref)
    prefixed = "hub:runs/mine" in str(caught.value)
    assert prefixed == (ref in ("runs/mine", "runs/mine@30"))
  assert home == []


@pytest.mark.parametrize(
  ("ref", "asked"),
  [
    ("org/name", ("org/name", None)),
    ("org/name@refs/pr/1", ("org/name", "refs/pr/1")),
    ("hub:org/name@abc", ("org/name", "abc")),
    ("hub:runs/mine", ("runs/mine", None)),
    ("runs/cached@abc", ("runs/cached", "abc")),
    ("hub:old-name", ("old-name", None)),
  ],
)
def test_names_of_the_hub(home, ref, asked):
  opened = reference.open_model(ref)
  assert home == [asked]
  assert opened.origin == "hub:" + ref.removeprefix("hub:")
  assert reference.open_model(opened.origin).origin == opened.origin


def test_a_local_folder_comes_before_the_hub(home):
  tiny.hf_folder(pathlib.Path("runs/cached"))
  assert reference.open_model("runs/cached").origin == "runs/cached" and home == []
  reference.open_model("hub:runs/cached")
  assert home == [("runs/cached", None)]


@pytest.mark.parametrize("name", ["", "/a", "a/b/c", "../a", "a b", "a/b@", "a/b\nc"])
def test_what_no_name_of_the_hub_can_be(home, name):
  refused(f"hub:{name}", "hub:ORG/NAME")
  assert home == []


def test_truncated_weights(tmp_path):
  folder = tiny.hf_folder(tmp_path / "m")
  file = folder / "model.safetensors"
  whole = file.read_bytes()
  for size in (0, 5, 8, 100, len(whole) // 2, len(whole) - 1):
    file.write_bytes(whole[:size])
    refused(folder, "model.safetensors", "truncated")
  file.write_bytes(whole + b"x")
  refused(folder, "truncated or damaged")
  file.write_bytes(whole[:8] + b"?" * 50 + whole[58:])
  refused(folder, "truncated or damaged")
  file.write_bytes(whole)
  opened = reference.open_model(str(folder))
  file.write_bytes(whole[:-1])  # another process damages it
  with pytest.raises(errors.UserError, match="truncated or damaged"):
    opened.weights["norm/weight"].read()
  file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
  refused(folder, "git lfs pull")


def test_incomplete_and_inconsistent_shards(tmp_path):
  folder = tiny.hf_folder(tmp_path / "m", shards=3)
  index_file = folder / "model.safetensors.index.json"
  index = json.loads(index_file.read_text())
  second = folder / "model-00002-of-00003.safetensors"
  tensors = safetensors.numpy.load_file(folder / "model-00001-of-00003.safetensors")
  away = tmp_path / "away"
  second.rename(away)
  refused(folder, "1 of 3 shards are missing", second.name)
  away.rename(second)

  moved = json.loads(index_file.read_text())
  name = next(iter(tensors))
  moved["weight_map"][name] = second.name
  index_file.write_text(json.dumps(moved))
  refused(folder, name, "which does not contain it")
  index_file.write_text(json.dumps(index | {"weight_map": {name: "../x.safetensors"}}))
  refused(folder, "not a file of this folder")
  index_file.write_text("{")
  refused(folder, "not valid JSON")

  index_file.write_text(json.dumps(index))
  with_copy = safetensors.numpy.load_file(second) | {name: tensors[name]}
  safetensors.numpy.save_file(with_copy, second)
  refused(folder, name, "stored twice")

  index_file.unlink()
  refused(folder, "neither model.safetensors nor")


def rewrite(folder, change):
  """Applies `change` to the tensors of a one-file folder."""
  tensors = tiny.tensors()
  change(tensors)
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def test_tensors_that_do_not_fit(tmp_path):
  folder = tiny.hf_folder(tmp_path / "m")
  name = "model.layers.1.mlp.up_proj.weight"
  rewrite(folder, lambda t: t.pop(name))
  refused(folder, "1 of", "missing", name)
  rewrite(folder, lambda t: t.update({name: t[name].T.copy()}))
  refused(folder, name, "expected [56, 32]")
  rewrite(folder, lambda t: t.update({"model.extra.weight": t[name]}))
  refused(folder, "model.extra.weight", "would be dropped")
  rewrite(folder, lambda t: t.update({name: t[name].astype(np.int8)}))
  refused(folder, name, "I8")
  # Old exporters wrote what the config determines.
  inv_freq = np.ones(4, np.float32)
  extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": inv_freq}
  rewrite(folder, lambda t: t.update(extra))
  assert reference.open_model(str(folder)).config == tiny.config()


def test_names_without_their_usual_prefix(tmp_path):
  """A model that was saved without its head has none of "model."."""
  folder = tiny.hf_folder(tmp_path / "m", "smollm2_tied")
  stored = tiny.tensors("smollm2_tied")
  save = lambda tensors: safetensors.numpy.save_file(
    tensors, folder / "model.safetensors"
  )
  save({name.removeprefix("model."): tensor for name, tensor in stored.items()})
  opened = reference.open_model(str(folder))
  for path in ("embed/weight", "norm/weight"):
    np.testing.assert_array_equal(
      opened.weights[path].read(), stored[names.hf_name(path)]
    )
  for prefix, remedy in (
    ("module.", "model.module.save_pretrained"),
    ("base_model.model.", "merge_and_unload"),
    ("transformer.", "It has transformer."),
  ):
    save({prefix + name: tensor for name, tensor in stored.items()})
    refused(folder, f"{len(stored)} of {len(stored)} tensors are missing", remedy)

  folder = tiny.hf_folder(tmp_path / "untied")
  rewrite(folder, lambda t: t.pop("lm_head.weight"))
  refused(folder, "lm_head.weight", "AutoModelForCausalLM", "tie_word_embeddings")


def test_a_tied_matrix_that_was_saved_as_the_head(tmp_path):
  """As safetensors.torch.save_model does, and transformers 5 reads."""
  folder = tiny.hf_folder(tmp_path / "m", "smollm2_tied")
  stored = tiny.tensors("smollm2_tied")
  matrix = stored.pop("model.embed_tokens.weight")
  stored["lm_head.weight"] = matrix
  safetensors.numpy.save_file(stored, folder / "model.safetensors")
  opened = reference.open_model(str(folder))
  np.testing.assert_array_equal(opened.weights["embed/weight"].read(), matrix)
  assert "lm_head/weight" not in opened.weights


def test_a_tied_model_whose_head_is_another_matrix_is_refused(tmp_path, monkeypatch):
  """transformers 5 computes with that head, version 4 with the embedding."""
  monkeypatch.setattr(weights, "_COMPARED_ROWS", 100)
  folder = tiny.hf_folder(tmp_path / "m", "smollm2_tied")
  stored = tiny.tensors("smollm2_tied")
  head = stored["model.embed_tokens.weight"].copy()
  save = lambda head: safetensors.numpy.save_file(
    stored | {"lm_head.weight": head}, folder / "model.safetensors"
  )
  save(head)
  assert reference.open_model(str(folder)).config.tie_embeddings
  save(head.astype(np.float32))
  reference.open_model(str(folder))
  head[-1, -1] += 1
  save(head)
  refused(folder, "lm_head.weight is not a copy", "tie_word_embeddings to false")
  save(head[:-1])
  refused(folder, "lm_head.weight is not a copy")
  stored["model.embed_tokens.weight"][0, 0] = np.nan
  save(stored["model.embed_tokens.weight"].copy())  # a copy; what is read says NaN
  reference.open_model(str(folder))


def test_pickles_are_never_opened(tmp_path):
  folder = tiny.hf_folder(tmp_path / "m")
  (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
  refused(folder, "pytorch_model.bin", "never opened", "safe_serialization")
  (folder / "pytorch_model.bin").unlink()
  refused(folder, "no model.safetensors")


def test_other_models(tmp_path):
  folder = tiny.hf_folder(tmp_path / "m")
  config = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
  refused(folder, "config.json", "model_type 'gpt2'")
  quantised = {"quantization_config": {"bits": 4}}
  (folder / "config.json").write_text(json.dumps(config | quantised))
  refused(folder, "quantization_config")
  (folder / "config.json").write_text(
    json.dumps(config | {"quantization_config": None})
  )
  assert reference.open_model(str(folder)).config == tiny.config()
  (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5}))
  refused(folder, "make the two spellings agree")


def test_tokenizer(tmp_path):
  folder = tiny.hf_folder(tmp_path / "m")
  ours, theirs = reference.load_tokenizer(str(folder)), tiny.tokenizer()
  assert ours(tiny.TEXT)["input_ids"] == theirs(tiny.TEXT)["input_ids"]
  assert ours.chat_template == theirs.chat_template
  reference.check_vocabulary(ours, tiny.config())
  ours.add_tokens([f"<extra_{i}>" for i in range(100)])
  with pytest.raises(errors.UserError, match=r"highest id is 398 .* 320"):
    reference.check_vocabulary(ours, tiny.config())
  (folder / "tokenizer.json").write_text('{"model": {}}')
  with pytest.raises(errors.UserError, match="unreadable tokenizer"):
    reference.load_tokenizer(str(folder))
  (folder / "tokenizer.json").unlink()
  (folder / "tokenizer.model").write_text("")
  with pytest.raises(errors.UserError, match=r"AutoTokenizer.*save_pretrained"):
    reference.load_tokenizer(str(folder))
  (folder / "tokenizer.model").rename(folder / "merges.txt")
  with pytest.raises(
    errors.UserError, match=r"a merges\.txt .*AutoTokenizer.*save_pre"
  ):
    reference.load_tokenizer(str(folder))
  (folder / "merges.txt").unlink()
  with pytest.raises(errors.UserError, match=r"no tokenizer\.json"):
    reference.load_tokenizer(str(folder))


def test_tokenizer_json_is_taken_literally(tmp_path):
  """transformers 5 rebuilds tokenizers of class LlamaTokenizer; that loses rules."""
  folder = tiny.hf_folder(tmp_path / "m")
  file = folder / "tokenizer_config.json"
  config = files.read_json(file) | {"tokenizer_class": "LlamaTokenizer"}
  files.write_json(file, config)
  ours = reference.load_tokenizer(str(folder))
  assert ours(tiny.TEXT)["input_ids"] == tiny.tokenizer()(tiny.TEXT)["input_ids"]


def test_several_chat_templates(tmp_path):
  """An export has them all; their names become names of files."""
  folder = tiny.hf_folder(tmp_path / "m")
  (folder / "chat_template.jinja").unlink()
  write = lambda found: files.write_json(
    folder / "tokenizer_config.json",
    files.read_json(folder / "tokenizer_config.json") | {"chat_template": found},
  )
  named = lambda name: [
    {"name": "default", "template": tiny.TEMPLATE},
    {"name": name, "template": "tools"},
  ]
  write(named("tool_use"))
  ours = reference.load_tokenizer(str(folder))
  assert ours.chat_template == {"default": tiny.TEMPLATE, "tool_use": "tools"}
  (tmp_path / "out").mkdir()
  export.save_tokenizer(ours, tmp_path / "out")
  again = reference.load_tokenizer(str(tmp_path / "out"))
  assert again.chat_template == ours.chat_template
  # As transformers 4 wrote it, and as other readers expect it.
  written = files.read_json(tmp_path / "out/tokenizer_config.json")["chat_template"]
  assert written == named("tool_use")
  for bad in (named("../../x"), named("/x"), named("a\0"), named(""), {"a": 1}, 5):
    write(bad)
    with pytest.raises(errors.UserError, match=r"unreadable tokenizer .a chat templ"):
      reference.load_tokenizer(str(folder))


def test_writer_streams_shards(tmp_path):
  tensors = tiny.tensors()
  total = sum(tensor.nbytes for tensor in tensors.values())
  (tmp_path / "m").mkdir()
  written = safetensors_files.write_tensors(tmp_path / "m", tensors.items(), 10_000)
  assert written == total
  index = json.loads((tmp_path / "m/model.safetensors.index.json").read_text())
  assert index["metadata"]["total_size"] == total
  shards = sorted((tmp_path / "m").glob("*.safetensors"))
  assert len(shards) > 2
  for shard in shards:
    held = safetensors.numpy.load_file(shard)
    assert len(held) == 1 or sum(t.nbytes for t in held.values()) <= 10_000
  folder = safetensors_files.SafetensorsFolder(tmp_path / "m")
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(folder.read(name), tensor)
  # A view of another memory order is written by value.
  (tmp_path / "t").mkdir()
  transposed = np.arange(6, dtype=np.float32).reshape(2, 3).T
  safetensors_files.write_tensors(tmp_path / "t", [("a", transposed)])
  read = safetensors_files.SafetensorsFolder(tmp_path / "t").read("a")
  np.testing.assert_array_equal(read, transposed)
