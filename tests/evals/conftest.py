"""Shared by tests of evaluations that read books."""

import pytest


@pytest.fixture(scope="module")
def book(request, tmp_path_factory):
  """The path of a book with the PROSE of the tests' module."""
  path = tmp_path_factory.mktemp("books") / "book.txt"
  path.write_text(request.module.PROSE)
  return str(path)
