"""Whether the hub is asked at all."""

import socket
import urllib.request

import huggingface_hub
import pytest

from skipalign_jax.hf import hub

FOUND = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))]


@pytest.mark.parametrize(
  ("found", "proxies", "expected"),
  [
    (FOUND, {}, True),
    (None, {}, False),
    (None, {"https": "http://proxy.invalid:3128"}, True),
    (None, {"http": "http://proxy.invalid:3128"}, False),
  ],
)
def test_an_address_is_looked_up_here_or_by_a_proxy(
  monkeypatch, found, proxies, expected
):
  def look_up(host, port):
    assert host == "huggingface.co"
    if found is None:
      raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return found

  monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://huggingface.co")
  monkeypatch.setattr(hub.socket, "getaddrinfo", look_up)
  monkeypatch.setattr(urllib.request, "getproxies", lambda: proxies)
  assert hub.is_reachable.__wrapped__() is expected
