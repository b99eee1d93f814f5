"""Documents to samples: no token lost, blocks where the text breaks, flags."""

import hypothesis
import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import strategies as st

from skipalign_jax import config
from skipalign_jax.data import chat, dialogues, prose, text, tokenization
from skipalign_jax.data import tokenizer as tokenizer_lib
from skipalign_jax.method import positions
from skipalign_jax.training import resolve

TOKENIZER = tokenizer_lib.byte_tokenizer()
EOS = TOKENIZER.eos_token_id


def encode(*documents, piece=1000, blocks="sentences", tokenizer=TOKENIZER):
  return list(map(list, text.Encoder(tokenizer, piece, blocks)(documents)))


def blocks_of(document, blocks):
  """The text of each block, from the tokens; ¶ is the eos token."""
  ((sample,),) = encode(document, blocks=blocks)
  found = []
  for block in range(sample.block_ids[-1] + 1):
    tokens = sample.tokens[sample.block_ids == block]
    found.append(TOKENIZER.decode(tokens[tokens != EOS]) + "¶" * int(EOS in tokens))
  return found


@pytest.mark.parametrize(
  ("more", "reason"),
  [
    ({"weight": 0}, "nothing to learn: key weight is 0"),
    ({"label": False, "images": []}, "nothing to learn: key label is false"),
    ({"label": 3}, "key label is not 0 or 1"),
    ({"images": ["a.png"], "label": 0}, "key images is not understood"),
    ({"summary": "Short."}, "key summary is not understood"),
    ({"system": "Be brief."}, "key system is not understood"),
    ({"loss_weight": 0.5}, "key loss_weight is not understood"),
  ],
)
def test_keys_next_to_a_document_are_understood_or_refused(more, reason):
  record = {"text": "A document."} | more
  with pytest.raises(dialogues.BadSample) as caught:
    text.text_of(record)
  assert caught.value.reason == reason
  assert text.text_of(record, frozenset(more)) == "A document."


@pytest.mark.parametrize(
  "columns",
  [
    "id dump url date file_path language language_score token_count score int_score "
    "language_script minhash_cluster_size top_langs",  # FineWeb
    "timestamp url source",  # C4, CulturaX
    "meta red_pajama_subset __index_level_0__",  # the Pile, SlimPajama
    "short_book_title publication_date url",  # PG19
    "id added created source metadata attributes version",  # Dolma
    "id url title",  # Wikipedia
    "max_stars_repo_path max_stars_repo_name max_stars_count id",  # StarCoder
    "repo_name path language license size",
    "created_timestamp downloaded_timestamp url",  # Pile of Law
    "warcinfo metadata bff_contained_ngram_count language_id_prob",  # DCLM
  ],
)
def test_what_corpora_say_about_a_document_changes_nothing(columns):
  record = {"text": "A document."} | dict.fromkeys(columns.split(), 0)
  assert text.text_of(record) == "A document."


def test_a_prompt_next_to_a_document_can_be_ignored():
  record = {"text": "A document.", "prompt": "Write one."}
  assert text.text_of(record) is None
  assert text.text_of(record, frozenset({"prompt"})) == "A document."


DOCUMENT = 'Mr. B\nsaid "No!" Why? é.\n \n\nA 2.5 heading\n\n  “End.”  Ja\n'


@pytest.mark.parametrize(
  ("blocks", "expected"),
  [
    ("none", [DOCUMENT + "¶"]),
    (
      "paragraphs",
      ['Mr. B\nsaid "No!" Why? é.\n \n\n', "A 2.5 heading\n\n  ", "“End.”  Ja\n¶"],
    ),
    (
      "sentences",
      [
        *("Mr. ", 'B\nsaid "No!" ', "Why? ", "é.\n \n\n", "A 2.5 heading\n\n  "),
        *("“End.”  ", "Ja\n¶"),
      ],
    ),
  ],
)
def test_blocks_by_hand(blocks, expected):
  assert blocks_of(DOCUMENT, blocks) == expected
  assert blocks_of(DOCUMENT.replace("\n", "\r\n"), blocks) == [
    block.replace("\n", "\r\n") for block in expected
  ]


def test_config_and_encoder_know_the_same_blocks():
  c = config.default()
  c.epochs = 1
  for c.data.text_blocks in text.BLOCKS:
    resolve.check(c)


def test_a_token_belongs_to_the_block_where_it_ends():
  """With tokens that begin with a space, as real tokenizers have them."""

  words = ["Hi", ".", " The", " cat", "!", "\n\n", "It", "<s>"]
  core = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "<s>")
  )
  core.pre_tokenizer = tokenizers.pre_tokenizers.Split(
    tokenizers.Regex(r"\s?\w+|\n+"), "isolated"
  )
  core.post_processor = tokenizers.processors.TemplateProcessing(
    "<s> $A", special_tokens=[("<s>", 7)]
  )
  adds_bos = transformers.PreTrainedTokenizerFast(
    tokenizer_object=core, bos_token="<s>"
  )
  ((sample,),) = encode("Hi. The cat!\n\nIt", tokenizer=adds_bos)
  assert sample.tokens.tolist() == [7, 0, 1, 2, 3, 4, 5, 6]
  assert sample.block_ids.tolist() == [0, 0, 0, 1, 1, 1, 1, 2]


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
  documents=st.lists(
    st.text(st.sampled_from('aé.!? \n"')).map(lambda t: "x" + t), max_size=3
  ),
  piece=st.integers(1, 9),
  blocks=st.sampled_from(sorted(text.BLOCKS)),
)
def test_pieces_add_up_to_the_document(documents, piece, blocks):
  ids = []
  for document, pieces in zip(
    documents, encode(*documents, piece=piece, blocks=blocks), strict=True
  ):
    whole = [*TOKENIZER(document)["input_ids"], EOS]
    for number, sample in enumerate(pieces):
      expected = whole[number * piece : (number + 1) * piece]
      if len(expected) == 1:
        assert sample.reason == chat.NO_TARGET
        continue
      assert sample.tokens.tolist() == expected
      assert sample.targets.tolist() == [False] + [True] * (len(expected) - 1)
      assert not sample.is_response.any()
      assert sample.block_ids[0] == 0 and set(np.diff(sample.block_ids)) <= {0, 1}
      assert sample.turns == sample.block_ids[-1] + 1
      ids.append((document, number, sample.sample_id))
    assert len(pieces) == -(-len(whole) // piece)
  assert len({id_ for *_, id_ in ids}) == len({(d, n) for d, n, _ in ids})


def test_documents_that_cannot_be_used():
  reasons = [pieces[0].reason for pieces in encode(" \n", "\ud800")]
  assert reasons == ["empty content", "not UTF-8"]


def test_names_of_special_tokens_are_text():
  ((piece,),) = encode("a <|im_end|>")
  special = set(TOKENIZER.added_tokens_decoder)
  assert TOKENIZER.decode(piece.tokens[:-1]) == "a <|im_end|>"
  assert not special & set(piece.tokens[:-1].tolist())


def test_long_documents_are_tokenized_in_groups(monkeypatch):
  monkeypatch.setattr(tokenization, "_TOGETHER", 10)
  documents = ["a" * 8, "b" * 8, " ", "c"]
  alone = [encode(document)[0][0] for document in documents]
  for one, (other,) in zip(alone, encode(*documents), strict=True):
    assert str(one) == str(other)


def test_which_records_are_texts():
  assert text.text_of({"text": "a", "id": 1, "messages": None}) == "a"
  for record in (
    {"text": 3},
    {"messages": [], "text": "a"},
    {"instruction": "q", "output": "a", "text": "both"},
    ["text"],
  ):
    assert text.text_of(record) is None


@pytest.mark.parametrize(
  ("strategy", "moves"),
  [("skip_all", True), ("skip_outer", True), ("skip_inner", False)],
)
def test_what_each_strategy_moves(strategy, moves):
  ((sample,),) = encode("One. Two. Three.")
  assert sample.block_ids[-1] == 2
  assert np.all(positions.DO_SKIP[strategy](sample.is_response) == moves)


def test_the_end_of_builtin_documents_refers_to_their_beginning():
  assert prose.record(3, 7) == prose.record(3, 7) != prose.record(4, 7)
  documents = [prose.record(0, i)["text"] for i in range(64)]
  assert len(set(documents)) == 64
  for i, document in enumerate(documents):
    first, *rest = document.strip().split("\n\n")
    owner, thing = first.split(" left ")[0], first.split(" left ")[1].split(" at ")[0]
    assert owner in rest[-1] and rest[-1].endswith(f"{thing}.")
    assert "{" not in document and (len(rest) >= 80) == (i % 16 == 15)
