"""Every end-of-sequence id of a model is kept, and ends replies."""

import sys
import types

import pytest
import tiny_files
import tiny_subject
import tiny_train

from skipalign_jax import config as config_lib
from skipalign_jax import convert, evaluate, generate
from skipalign_jax.commands import evaluate as commands_evaluate
from skipalign_jax.evals import runner, scheduled, tasks
from skipalign_jax.hf import export, reference, stops
from skipalign_jax.model import inference
from skipalign_jax.runtime import errors, files
from skipalign_jax.training import setup

SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20}
EOS = [9, 1, 7]  # 1 is the tokenizer's own, and 3 ends a reply in its template


@pytest.fixture
def folder(tmp_path):
  """An HF folder of the byte tokenizer whose generation_config.json has three ids."""
  path = tiny_subject.folder(tmp_path / "hf")
  files.write_json(path / "generation_config.json", SAMPLING | {"eos_token_id": EOS})
  config = files.read_json(path / "config.json")
  files.write_json(path / "config.json", config | {"eos_token_id": 8})
  return path


@pytest.mark.parametrize(
  ("generation", "config", "expected"),
  [
    (None, None, ()),
    ({}, {"eos_token_id": None}, ()),
    ({"eos_token_id": 5}, {"eos_token_id": 5}, (5,)),
    ({"eos_token_id": [5, 3]}, {"eos_token_id": [3, 4]}, (5, 3, 4)),
    ({"eos_token_id": [-1, 0, 99]}, {}, (0,)),
  ],
)
def test_ids_of_both_files(generation, config, expected):
  assert stops.named(generation, config, 99, "x") == expected


@pytest.mark.parametrize("value", ["2", [1, "2"], 1.0, True, [[1]], {}])
def test_values_that_are_no_ids_are_refused(folder, value):
  files.write_json(folder / "generation_config.json", {"eos_token_id": value})
  with pytest.raises(errors.UserError, match="eos_token_id of generation_config"):
    reference.open_model(str(folder))


def test_all_ids_and_the_sampling_survive_import_and_export(folder, tmp_path):
  native, out = tmp_path / "native", tmp_path / "out"
  convert.main(["import", f"--model={folder}", f"--out={native}"])
  assert reference.open_model(str(native)).eos_ids == (*EOS, 8)
  convert.main(["export", f"--model={native}", f"--out={out}"])
  generation = files.read_json(out / "generation_config.json")
  assert generation.items() >= SAMPLING.items()
  assert generation["eos_token_id"] == [*EOS, 8, 3]
  assert files.read_json(out / "config.json")["eos_token_id"] == [*EOS, 8, 3]


def training(folder, cache_dir):
  c = tiny_train.load("llama2_ntk")
  c.model, c.rope = config_lib.default().model, config_lib.default().rope
  c.model.init_from, c.model.compute_dtype = str(folder), "float32"
  c.data.cache_dir, c.data.seq_len, c.steps, c.batch_size = cache_dir, 128, 1, 2
  return c


def test_training_keeps_them(folder, tmp_path, cache_dir):
  c = training(folder, cache_dir)
  c.data.tokenizer = ""
  assert tiny_train.run(c, tmp_path / "run") == 0
  trained = reference.open_model(str(tmp_path / "run"))
  assert trained.eos_ids == (*EOS, 8)
  assert trained.generation_config.items() >= SAMPLING.items()


def test_generation_and_evaluations_stop_at_each(folder, monkeypatch, tmp_path):
  seen = []

  def record(self, prompts, new, stop_ids, *rest):
    seen.append(tuple(stop_ids))
    return []

  monkeypatch.setattr(inference.Engine, "generate", record)
  arguments = ["generate", f"--model={folder}", "--prompt=a"]
  monkeypatch.setattr(sys, "argv", arguments)
  generate.main()
  flags = ["needle", f"--model={folder}", "--dtype=float32"]
  monkeypatch.setattr(
    commands_evaluate, "run",
    lambda args: seen.append(commands_evaluate.open_subject(args).stop_ids) or 0,
  )  # fmt: skip
  evaluate.main(flags)
  monkeypatch.setattr(
    runner, "run",
    lambda task, module, options, subject, *rest: (
      seen.append(subject.stop_ids) or {"summary": {}}
    ),
  )  # fmt: skip
  opened = reference.open_model(str(folder))
  evaluator = scheduled.Evaluator(
    opened.config, "float32", reference.load_tokenizer(str(folder)), opened.eos_ids,
    types.SimpleNamespace(size=1), tmp_path, None,
  )  # fmt: skip
  needle = scheduled.Scheduled("n", "needle", 1, 0, 64, tasks.options("needle", {}))
  evaluator.run(needle, 1, tiny_subject.PARAMS)
  assert seen == [(*EOS, 8, 3)] * 3


# Qwen3: earlier replies lose their thoughts, and the prompt may end one.
THINKING = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
  "{{ m.content if loop.last else m.content.split('</think>')[-1] }}"
  "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
  "{{ '<|im_start|>assistant\n' }}"
  "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
  "{% endif %}"
)


def test_a_template_with_thoughts_stops_no_command(folder, monkeypatch, tmp_path):
  tokenizer = reference.load_tokenizer(str(folder))
  tokenizer.chat_template = THINKING
  export.save_tokenizer(tokenizer, folder)
  out = tmp_path / "out"
  convert.main(["export", f"--model={folder}", f"--out={out}"])
  assert reference.load_tokenizer(str(out)).chat_template == THINKING
  seen = []
  monkeypatch.setattr(
    inference.Engine, "generate",
    lambda self, prompts, new, stop_ids, *rest: (
      seen.append((tokenizer.decode(prompts[0]), tuple(stop_ids))) or []
    ),
  )  # fmt: skip
  monkeypatch.setattr(
    commands_evaluate, "run",
    lambda args: seen.append(commands_evaluate.open_subject(args).stop_ids) or 0,
  )  # fmt: skip
  closed = "--template_kwargs=enable_thinking=false"
  monkeypatch.setattr(sys, "argv", ["generate", f"--model={out}", "--prompt=a", closed])
  generate.main()
  evaluate.main(["needle", f"--model={out}", "--dtype=float32", closed])
  (prompt, stop_ids), of_evaluation = seen
  assert prompt.endswith("assistant\n<think>\n\n</think>\n\n")
  assert stop_ids == of_evaluation and 3 in stop_ids


def test_ids_of_another_tokenizer_are_not_taken_over(folder, tmp_path):
  """Id 1 is the end of a text in one tokenizer, the start of a turn in the other."""
  tiny_files.tokenizer().save_pretrained(tmp_path / "other")
  out = tmp_path / "out"
  flags = ["import", f"--model={folder}", f"--tokenizer={tmp_path / 'other'}"]
  with pytest.raises(errors.UserError, match="embedding rows"):
    convert.main([*flags, f"--out={out}"])
  theirs = reference.load_tokenizer(str(tmp_path / "other"))
  opened = reference.with_tokenizer(reference.open_model(str(folder)), theirs)
  assert opened.eos_ids == ()
  assert opened.generation_config == SAMPLING | {"eos_token_id": None}
  own = reference.load_tokenizer(str(folder))
  same = reference.with_tokenizer(reference.open_model(str(folder)), own)
  assert same.eos_ids == (*EOS, 8)


def test_a_run_with_the_same_tokenizer_by_name_keeps_them(folder, tmp_path, cache_dir):
  c = training(folder, cache_dir)
  c.data.tokenizer = "bytes"
  prepared = setup.prepare(c, tmp_path / "run", tiny_train.quiet())
  assert prepared.opened.eos_ids == (*EOS, 8)


def test_gguf_files_name_up_to_three_ids(tmp_path):
  path = tiny_files.gguf_file(tmp_path / "m.gguf")
  assert reference.open_model(str(path)).eos_ids == (0,)
  path = tiny_files.gguf_file(
    tmp_path / "n.gguf",
    metadata={"tokenizer.ggml.eot_token_id": 2, "tokenizer.ggml.eom_token_id": 0},
  )
  assert reference.open_model(str(path)).eos_ids == (0, 2)
