"""A subject as a model of lm-evaluation-harness (`lm_eval.api.model.LM`).

Tokens are those of the harness's own adapter for Hugging Face's causal models (HFLM),
so that figures can be compared: blanks at the end of a context belong to the
continuation, both are encoded as one text and then split, an empty context is the bos
token (or the eos token if there is none), names of special tokens in any text are the
tokens, and what does not fit into the window is cut off on the left.

Two things differ from HFLM: single-token continuations of one context are scored in one
pass, and sampling has temperature and top_p only.
"""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval import utils as lm_eval_utils
from lm_eval.api import instance as instance_lib
from lm_eval.api import model as lm_eval_model
from lm_eval.models import utils as lm_eval_models

from skipalign_jax.data import template_text
from skipalign_jax.evals import items as items_lib
from skipalign_jax.evals import subject as subject_lib
from skipalign_jax.evals.lm_eval import queries
from skipalign_jax.runtime import errors

Request = instance_lib.Instance
Records = dict[str, dict[str, Any]]
Reader = Callable[[Records], Any]  # the answer to a request, from all records

GREEDY_IGNORES = {"temperature", "top_p", "top_k"}
KNOWN = {"until", "do_sample", "max_gen_toks", "temperature", "top_p"}


class SubjectLM(lm_eval_model.TemplateLM):
  """Answers the harness's requests with a subject.

  Attributes:
    truncated: number of requests so far that lost tokens on the left.
    planned: number of requests so far.
  """

  def __init__(
    self,
    subject: subject_lib.Subject,
    measure: Callable[[Sequence[items_lib.Item]], Sequence[dict[str, Any]]]
    | None = None,
    expected: Callable[[], Sequence[Request]] | None = None,
  ):
    """Does not run the model yet.

    Args:
      subject: the model.
      measure: returns the records of items; by default without saving them.
      expected: returns all requests of the evaluation. If given, the first call
        measures all of them, so that they share batches.

    Raises:
      UserError: the tokenizer has no token to put before a text.
    """
    super().__init__()
    self.tokenizer = subject.tokenizer
    if self.prefix_token_id is None:
      raise errors.UserError("the tokenizer has neither a bos nor an eos token")
    self.truncated = self.planned = 0
    self._subject = subject
    self._measure = measure or self._measure_unsaved
    self._expected = expected
    self._answers: dict[int, collections.deque[Any]] = {}

  @property
  def eot_token_id(self) -> int:
    return self.tokenizer.eos_token_id

  @property
  def prefix_token_id(self) -> int | None:
    """The token before a text that has no context."""
    bos = self.tokenizer.bos_token_id
    return self.tokenizer.eos_token_id if bos is None else bos

  @property
  def max_length(self) -> int:
    return self._subject.window

  @property
  def tokenizer_name(self) -> str:
    return self._subject.identity["tokenizer_sha256"]

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **_
  ) -> list[int]:
    """Tokens, by default with the bos token if the tokenizer adds it and the text does
    not begin with it."""
    if add_special_tokens is None:
      prefix = self.tokenizer.decode([self.prefix_token_id])
      add_special_tokens = not string.startswith(prefix)
    return self._subject.encode(string, special=add_special_tokens)

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    """A dialogue as text; without generation prompt its last message stays open.

    Raises:
      UserError: there is no template, or it refuses the dialogue.
    """
    return self._subject.render(
      chat_history,
      add_generation_prompt=add_generation_prompt,
      continue_final_message=not add_generation_prompt,
    )

  def loglikelihood(
    self, requests: list[Request], disable_tqdm: bool = False
  ) -> list[tuple[float, bool]]:
    """log p of continuations, and whether greedy decoding would write them."""
    return self._answer(requests)

  def loglikelihood_rolling(
    self, requests: list[Request], disable_tqdm: bool = False
  ) -> list[float]:
    """log p of whole texts, in windows that overlap by one token."""
    return self._answer(requests)

  def generate_until(
    self, requests: list[Request], disable_tqdm: bool = False
  ) -> list[str]:
    """Replies, cut before the first stop string."""
    return self._answer(requests)

  def _loglikelihood_tokens(self, requests, **_):
    raise AssertionError("abstract in the base class; only its loglikelihood calls it")

  def _measure_unsaved(self, items: Sequence[items_lib.Item]) -> list[dict[str, Any]]:
    found = {
      record["id"]: record
      for batch in items_lib.batches(self._subject, items)
      for record in items_lib.measured(
        self._subject, lambda batch: queries.measure(self._subject, batch), batch
      )
    }
    return [found[item.id] for item in items]

  def _answer(self, requests: Sequence[Request]) -> list[Any]:
    if any(not self._answers.get(id(request)) for request in requests):
      everything = self._expected() if self._expected else requests
      items, readers = Plan(self, self._subject).of(everything)
      records = self._measure(items)
      by_id = {item.id: found for item, found in zip(items, records, strict=True)}
      self._answers = collections.defaultdict(collections.deque)
      for request, read in zip(everything, readers, strict=True):
        self._answers[id(request)].append(read(by_id))
    return [self._answers[id(request)].popleft() for request in requests]


class Plan:
  """Turns requests into items, and records which item answers which request."""

  def __init__(self, lm: SubjectLM, subject: subject_lib.Subject):
    self._lm = lm
    self._stop_ids = subject.stop_ids
    self._special = template_text.special_tokens(subject.tokenizer)
    self._queries: dict[str, queries.Score | queries.Reply] = {}
    self._choices: dict[tuple, tuple[str, list[int]]] = {}  # context → id, candidates
    self._used: collections.Counter[str] = collections.Counter()

  def of(
    self, requests: Sequence[Request]
  ) -> tuple[list[items_lib.Item], list[Reader]]:
    """Items, and for each request a function that reads its answer from all records.

    Raises:
      UserError: a request that this model cannot answer.
    """
    by_type = {
      "loglikelihood": self._loglikelihood,
      "loglikelihood_rolling": self._rolling,
      "generate_until": self._reply,
    }
    readers = []
    for request in requests:
      readers.append(by_type[request.request_type](request))
      self._lm.planned += 1
    choices = {
      name: queries.Next(tokens, tuple(candidates))
      for (_, _, tokens), (name, candidates) in self._choices.items()
    }
    found = choices | self._queries
    return [queries.item(name, query) for name, query in found.items()], readers

  def _name(self, request: Request) -> str:
    """type/task/document/index, with a count if the same request is repeated."""
    name = f"{request.request_type}/{request.task_name}/{request.doc_id}/{request.idx}"
    self._used[name] += 1
    return name if self._used[name] == 1 else f"{name}/{self._used[name]}"

  def _loglikelihood(self, request: Request) -> Reader:
    context, continuation = request.args
    name = self._name(request)
    if context:
      # private: TemplateLM._encode_pair, with which HFLM splits a pair
      before, tokens = self._lm._encode_pair(context, continuation)
    else:
      before = [self._lm.prefix_token_id]
      tokens = self._lm.tok_encode(continuation, add_special_tokens=False)
      if tokens[:1] == before:
        tokens = tokens[1:]
    if not tokens:
      raise errors.UserError(
        f"{name}: {continuation!r} has no token of its own after its context"
      )
    if not before:
      raise errors.UserError(f"{name}: the context {context!r} has no tokens")
    return self._scored(name, request, before, tokens)

  def _scored(
    self, name: str, request: Request, before: list[int], tokens: list[int]
  ) -> Reader:
    """Reads (log p, greedy) of `tokens` after `before`."""
    window = self._lm.max_length
    if len(tokens) > window:
      raise errors.UserError(
        f"{name}: a continuation of {len(tokens)} tokens does not fit into the model's "
        f"window of {window}"
      )
    whole = tuple([*before, *tokens][-(window + 1) :])
    self._lm.truncated += len(before) + len(tokens) > window + 1
    if len(tokens) > 1:
      self._queries[name] = queries.Score(whole, len(whole) - len(tokens))
      return functools.partial(_read_score, name, 0)
    context = (request.task_name, request.doc_id, whole[:-1])
    name, candidates = self._choices.setdefault(context, (name, []))
    candidates.append(whole[-1])
    return functools.partial(_read_score, name, len(candidates) - 1)

  def _rolling(self, request: Request) -> Reader:
    (text,) = request.args
    name = self._name(request)
    windows = lm_eval_utils.get_rolling_token_windows(
      self._lm.tok_encode(text),
      prefix_token=self._lm.prefix_token_id,
      max_seq_len=self._lm.max_length,
      context_len=1,
    )
    parts = [
      self._scored(f"{name}/{i}", request, *lm_eval_utils.make_disjoint_window(window))
      for i, window in enumerate(windows)
    ]
    return lambda records: sum(part(records)[0] for part in parts)

  def _reply(self, request: Request) -> Reader:
    context, options = request.args
    name = self._name(request)
    options = lm_eval_models.normalize_gen_kwargs(options, default_max_gen_toks=256)
    sampled = options["do_sample"]
    known = KNOWN if sampled else KNOWN | GREEDY_IGNORES
    if unknown := sorted(options.keys() - known):
      raise errors.UserError(
        f"{name}: generation option {unknown[0]}={options[unknown[0]]!r} is not "
        f"supported here; known are {', '.join(sorted(KNOWN))}"
      )
    if options["max_gen_toks"] < 1:
      raise errors.UserError(
        f"{name}: max_gen_toks={options['max_gen_toks']} must be at least 1"
      )
    room = self._lm.max_length - options["max_gen_toks"]
    if room < 1:
      raise errors.UserError(
        f"{name}: replies of {options['max_gen_toks']} tokens leave no room for a "
        f"prompt in the model's window of {self._lm.max_length}"
      )
    tokens = self._lm.tok_encode(context) or [self._lm.prefix_token_id]
    self._lm.truncated += len(tokens) > room
    until = [stop for stop in options["until"] if stop]
    # Special tokens are not in the decoded text, so they stop as tokens.
    special = [self._special[stop] for stop in until if stop in self._special]
    self._queries[name] = queries.Reply(
      tuple(tokens[-room:]),
      options["max_gen_toks"],
      (*self._stop_ids, *special),
      tuple(until),
      float(options.get("temperature", 1.0)) if sampled else 0.0,
      float(options.get("top_p", 1.0)) if sampled else 1.0,
    )
    return lambda records: records[name]["reply"]


def _read_score(name: str, index: int, records: Records) -> tuple[float, bool]:
  record = records[name]
  return record["log_p"][index], record["likeliest"][index]
