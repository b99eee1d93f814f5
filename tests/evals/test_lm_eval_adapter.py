"""Requests of lm-evaluation-harness: our adapter against its own (HFLM), in fp32."""

import dataclasses
import os
import pathlib

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import numpy as np
import pytest
import tiny_files
from lm_eval.api import instance
from tokenizers import processors

from skipalign_jax import convert
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.evals.lm_eval import adapter, patches, tasks
from skipalign_jax.hf import reference
from skipalign_jax.model import inference

pytestmark = pytest.mark.torch

ROOT = pathlib.Path(__file__).parents[2]
GGUF = os.environ.get(
  "SKIPALIGN_SMOLLM2", str(ROOT / ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
)
BENCHMARKS = ROOT.parent / "shared/data/short_benchmarks"
WINDOW = 160  # shorter than the models', so that texts are cut and windows roll
TEXT = (
  "The lighthouse keeper counted the ships every evening. In spring there were more "
  "of them, and in winter he counted gulls instead.\n\n"
)


def adapters(ref, folder, tokenizer, window=None):
  """Ours on a model reference, theirs on a Hugging Face folder of the same model."""
  huggingface = pytest.importorskip("lm_eval.models.huggingface")
  opened = reference.open_model(str(ref))
  config = dataclasses.replace(opened.config, window=window or opened.config.window)
  engine = inference.Engine(reference.load_params(opened), config, "float32")
  subject = subject_lib.Subject(
    engine,
    tokenizer,
    subject_lib.identity(str(ref), config, tokenizer, "float32"),
    batch_tokens=4096,
    eos_ids=opened.eos_ids,
  )
  theirs = huggingface.HFLM(
    str(folder),
    tokenizer=tokenizer,
    dtype="float32",
    device="cpu",
    batch_size=4,
    max_length=window,
  )
  theirs.model.generation_config.eos_token_id = list(subject.stop_ids)
  return adapter.SubjectLM(subject), theirs


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  out = tmp_path_factory.mktemp("export") / "hf"
  assert (
    convert.main(["export", f"--model={GGUF}", f"--out={out}", "--dtype=float32"]) == 0
  )
  return out


def requests(kind, arguments):
  return [
    instance.Instance(kind, {}, args, 0, ("t", doc, 1))
    for doc, args in enumerate(arguments)
  ]


def same_scores(found, expected):
  assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
  np.testing.assert_allclose(
    [log_p for log_p, _ in found], [log_p for log_p, _ in expected], atol=1e-3
  )


def agree(us, them):
  """Boundaries of context and continuation, and texts longer than the window."""
  pairs = [
    ("The capital of France is", " Paris"),
    ("The capital of France is ", "Paris"),
    ("The capital of France is  ", "Paris, a city"),
    ("Question: 2+2=\nAnswer:\n", "4"),
    ("", "Once upon a time"),
    ("", "<|im_start|>user"),
    ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Hello"),
    ("un", "believable"),
    (TEXT * 8 + "The keeper counted", " ships"),
    (TEXT * 8 + "The keeper counted", " the ships every evening."),
  ]
  sent = requests("loglikelihood", pairs)
  same_scores(us.loglikelihood(sent), them.loglikelihood(sent))
  assert us.truncated == 2

  texts = [(TEXT,), (TEXT * 9,), ("Hi",)]
  sent = requests("loglikelihood_rolling", texts)
  np.testing.assert_allclose(
    us.loglikelihood_rolling(sent), them.loglikelihood_rolling(sent), atol=5e-3
  )

  options = {"until": [".", "\n\n"], "do_sample": False, "max_gen_toks": 24}
  chat = them.apply_chat_template([{"role": "user", "content": "Name two colours."}])
  assert chat == us.apply_chat_template(
    [{"role": "user", "content": "Name two colours."}]
  )
  sent = requests(
    "generate_until",
    [
      ("The capital of France is", options),
      (TEXT * 8 + "The keeper", options),
      (chat, options | {"until": []}),
      (chat, options | {"until": [" and"]}),
    ],
  )
  replies = us.generate_until(sent)
  assert replies == them.generate_until(sent)
  return replies


@pytest.mark.parametrize("adds_bos", [False, True])
def test_tiny_model(adds_bos, tmp_path):
  tokenizer = tiny_files.tokenizer()
  if adds_bos:
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
      single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
  folder = tiny_files.hf_folder(tmp_path / "hf", dtype=np.float32)
  replies = agree(*adapters(folder, folder, tokenizer, WINDOW))
  assert len(set(replies)) > 1


@pytest.mark.weights
def test_smollm2(exported):
  agree(*adapters(GGUF, exported, reference.load_tokenizer(GGUF), WINDOW))


@pytest.mark.weights
def test_real_tasks(exported):
  """MMLU and BBH with the harness's prompts."""
  if not BENCHMARKS.is_dir():
    pytest.skip(f"needs benchmarks in {BENCHMARKS}")
  us, them = adapters(GGUF, exported, reference.load_tokenizer(GGUF))
  with patches.own_code_eval():
    found = tasks.load(
      ["mmlu_high_school_geography", "bbh_cot_fewshot_boolean_expressions"],
      str(BENCHMARKS),
      unsafe_code=False,
      num_fewshot=2,
      note=print,
    )
  mmlu, bbh = found["tasks"].values()
  bbh.config.generation_kwargs["max_gen_toks"] = 64
  mmlu.build_all_requests(limit=5)
  bbh.build_all_requests(limit=3)
  same_scores(us.loglikelihood(mmlu.instances), them.loglikelihood(mmlu.instances))
  assert us.generate_until(bbh.instances) == them.generate_until(bbh.instances)
