"""No foreign code runs, no file outside is reached, no secret is written down."""

import ast
import io
import json
import os
import pathlib
import pickle
import subprocess
import sys

import jinja2
import pyarrow.parquet
import pytest
import tiny
import tiny_files as hf_tiny

from skipalign_jax.data import chat, sources
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.hf import chat_template, reference
from skipalign_jax.runtime import errors

PACKAGE = tiny.ROOT / "skipalign_jax"
SECRETS = {
  name: f"secret-of-{name.lower()}"
  for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_KEY")
}
# Calls that run the content of a file. `program_child` is for that: it runs programs of
# a model, with --unsafe_code, in processes of their own.
RUNNING = {"eval", "exec", "compile", "__import__"}
PICKLING = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch"}


def calls_and_imports():
  for path in PACKAGE.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names]
        yield path, [getattr(node, "module", None) or "", *names], node
      elif isinstance(node, ast.Call):
        yield path, [_called(node.func)], node


def _is_false(value) -> bool:
  return isinstance(value, ast.Constant) and value.value is False


def _called(function) -> str:
  """`f` or `module.f`; of other expressions the attribute, with a dot before it."""
  if isinstance(function, ast.Name):
    return function.id
  if not isinstance(function, ast.Attribute):
    return ""
  owner = function.value
  return f"{owner.id if isinstance(owner, ast.Name) else ''}.{function.attr}"


def test_nothing_unpickles_or_runs_text():
  checked = 0
  for path, names, node in calls_and_imports():
    checked += 1
    if isinstance(node, ast.Call):
      assert names[0] not in RUNNING or path.name == "program_child.py", path
      assert names[0] not in ("np.load", "numpy.load", "yaml.unsafe_load"), path
      keywords = {one.arg for one in node.keywords if not _is_false(one.value)}
      assert not keywords & {"allow_pickle", "trust_remote_code", "shell"}, path
    elif path.name != "parity.py":  # makes a model of transformers to compare with
      assert not {name.split(".")[0] for name in names} & PICKLING, path
  assert checked > 3000


class Trap:
  """Unpickling it makes a folder."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder

  def __reduce__(self):
    return os.mkdir, (str(self.folder),)


def test_pickles_in_model_folders_and_parquet_stay_shut(tmp_path):
  trap = pickle.dumps(Trap(tmp_path / "sprung"))
  made = hf_tiny.hf_folder(tmp_path / "m")
  for name in ("pytorch_model.bin", "training_args.bin", "tokenizer.pkl"):
    (made / name).write_bytes(trap)
  assert reference.open_model(str(made)).kind == "hf"
  reference.load_tokenizer(str(made))
  (made / "model.safetensors").unlink()
  with pytest.raises(errors.UserError, match="never opened"):
    reference.open_model(str(made))
  # Once pyarrow unpickled the types of columns that said so.
  marked = {
    b"ARROW:extension:name": b"arrow.py_extension_type",
    b"ARROW:extension:metadata": trap,
  }
  field = pyarrow.field("text", pyarrow.string(), metadata=marked)
  table = pyarrow.table([["a text"]], schema=pyarrow.schema([field]))
  pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
  assert list(sources.Source(str(tmp_path / "x.parquet")).records()) == [
    (1, {"text": "a text"})
  ]
  assert not (tmp_path / "sprung").exists()
  pickle.loads(trap)  # the trap itself works
  assert (tmp_path / "sprung").exists()


def test_models_bring_no_code(tmp_path):
  made = hf_tiny.hf_folder(tmp_path / "m")
  code = f"import os; os.mkdir({str(tmp_path / 'sprung')!r})\n"
  (made / "evil.py").write_text(code)
  for name in ("config.json", "tokenizer_config.json"):
    whole = json.loads((made / name).read_text())
    classes = ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM")
    whole["auto_map"] = dict.fromkeys(classes, "evil.Evil")
    (made / name).write_text(json.dumps(whole))
  reference.open_model(str(made))
  reference.load_tokenizer(str(made))
  assert not (tmp_path / "sprung").exists()


def with_template(template: str):
  tokenizer = tokenizer_lib.byte_tokenizer()
  tokenizer.chat_template = template
  return tokenizer


ASKED = [{"role": "user", "content": "a"}]
# 2**40 lists in the memory of 40.
NESTED = (
  "{% set n = namespace(a=[0], b=[0]) %}{% for i in range(40) %}"
  "{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% endfor %}"
)
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
  ("template", "problem"),
  [
    (LOOP, "takes more than 0.2 s"),
    ("{{ 7**(7**9) }}", "takes more than 0.2 s"),
    # One call into C, in which Python's signals wait.
    ("{{ ([[0]*999]*9999)|sum(start=[])|length }}", "takes more than 0.2 s"),
    (NESTED + "{{ n.a|tojson }}", "takes more than 0.2 s"),
    (NESTED + "{{ n.a == n.b }}", "takes more than 0.2 s"),
    ("{{ 'a' * 10**10 }}", "MiB of memory"),
    ("{{ [0] * 10**10 }}", "MiB of memory"),
    ("{{ '%010000000000d' % 1 }}", "MiB of memory"),
    ("{{ 'a' | center(10**10) }}", "MiB of memory"),
    ("{{ 'abc' * 10**6 }}", "makes 3,000,000 characters"),
  ],
)
def test_templates_end_in_time_and_memory(template, problem, monkeypatch):
  if "0.2 s" in problem:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.2)
  message = f"chat template of runs/m .*{problem}.* data.template=tulu"
  with pytest.raises(errors.UserError, match=message):
    chat_template.try_out(with_template(template), "runs/m")


def test_a_template_that_behaves_at_first_ends_too(monkeypatch):
  monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.2)
  tokenizer = with_template(
    "{% set n = messages|length %}"  # not known when the template is compiled
    "{% if n > 3 %}{{ ([[0]*999*n]*9999)|sum(start=[])|length }}{% endif %}ok"
  )
  chat_template.try_out(tokenizer, "x")
  dialogue = [("user", "a"), ("assistant", "b")] * 2
  with pytest.raises(errors.UserError, match=r"takes more than 0.2 s"):
    chat.Encoder(tokenizer, 64).samples([dialogue])
  texts = chat_template.render_all(tokenizer, [ASKED, ASKED])  # in another process
  assert texts == ["ok", "ok"]


@pytest.mark.parametrize(
  "template",
  [
    "{{ 1 / 0 }}",
    "{{ messages[7].content }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{% include '/etc/passwd' %}",
    "{% if true %}" * 300 + "{% endif %}" * 300,
  ],
)
def test_templates_that_fail_make_bad_records(template):
  tokenizer = with_template(template)
  with pytest.raises(jinja2.TemplateError):
    chat_template.render(tokenizer, ASKED)
  chat_template.try_out(tokenizer, "x")  # a template may refuse a dialogue
  (found,) = chat.Encoder(tokenizer, 64)([[("user", "a"), ("assistant", "b")]])
  assert found.reason.startswith("refused by the chat template: ")


@pytest.mark.slow
def test_no_secret_is_written_or_printed(tmp_path):
  """A run, its evaluation and its model card, with secrets in the environment."""
  environment = tiny.environment(1) | SECRETS
  environment["HF_HUB_OFFLINE"] = "1"
  run, card, ev = (str(tmp_path / name) for name in ("run", "hf", "eval"))
  output = io.StringIO()
  cache = f"--config.data.cache_dir={tmp_path}/cache"
  for command in (
    ["train", "--config=configs/quickstart.py:tiny", f"--workdir={run}", cache],
    ["convert", "export", f"--model={run}", f"--out={card}"],
    ["evaluate", "needle", f"--model={run}", "--lengths=400", f"--out={ev}"],
    ["generate", "--model=org/no-such-model", "--prompt=a"],  # an error of the hub
  ):
    done = subprocess.run(
      [sys.executable, "-m", f"skipalign_jax.{command[0]}", *command[1:]],
      cwd=tiny.ROOT,
      env=environment,
      capture_output=True,
      text=True,
    )
    assert done.returncode == (2 if command[0] == "generate" else 0), done.stderr
    output.write(done.stdout + done.stderr)
  files = [path for path in tmp_path.rglob("*") if path.is_file()]
  names = {path.name for path in files}
  assert {"config.json", "metrics.jsonl", "README.md", "results.json"} <= names
  for secret in SECRETS.values():
    assert secret not in output.getvalue()
    for path in files:
      assert secret.encode() not in path.read_bytes(), path
