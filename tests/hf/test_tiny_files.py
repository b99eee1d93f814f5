"""The tiny files that other tests read are what they should be."""

import tiny_files


def test_tiny_tokenizer_is_lossless():
  tok = tiny_files.tokenizer()
  assert tok.decode(tok(tiny_files.TEXT)["input_ids"]) == tiny_files.TEXT
  assert len(tok) <= tiny_files.config().vocab_size
