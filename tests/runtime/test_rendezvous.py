"""Processes of one run find each other; those of another run disturb nobody."""

import socket
import threading

import pytest

from skipalign_jax.runtime import errors, rendezvous


@pytest.fixture
def address():
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{found.getsockname()[1]}"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(rendezvous, "_TAKEN_SECONDS", 0.5)
  monkeypatch.setattr(rendezvous, "_ANSWER_SECONDS", 0.5)
  monkeypatch.setattr(rendezvous, "_RETRY_SECONDS", 0.02)


class Meeting(threading.Thread):
  """A process that waits; `ended` is "" or the error."""

  def __init__(self, address, index, run="a", count=3, timeout=10):
    super().__init__(daemon=True)
    self.ended = None
    self._process = rendezvous.Process(address, count, index, run)
    self._timeout = timeout
    self.start()

  def run(self):
    try:
      rendezvous.meet(self._process, self._timeout)
      self.ended = ""
    except errors.UserError as error:
      self.ended = str(error)

  def end(self):
    self.join(timeout=20)
    return self.ended


def listening(address):
  """Waits until something is there."""
  host, port = address.split(":")
  for _ in range(1000):
    try:
      socket.create_connection((host, int(port)), 1).close()
      return
    except OSError:
      pass
  raise AssertionError("nobody listens")


def test_all_of_a_run_meet_in_any_order_and_leave_the_port_free(address):
  for order in ((0, 1, 2), (2, 1, 0)):
    run = [Meeting(address, index) for index in order]
    assert [one.end() for one in run] == ["", "", ""]
  with socket.socket() as later:
    later.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    later.bind(("127.0.0.1", int(address.split(":")[1])))


def test_a_process_of_another_run_is_refused_and_the_first_run_goes_on(address):
  first = [Meeting(address, 0, "runs/[a]\n"), Meeting(address, 1, "runs/[a]\n")]
  listening(address)
  for index in (1, 2):
    refused = Meeting(address, index, "runs/b").end()
    assert "runs/[a]" in refused and "runs/b" in refused and "own port" in refused
  assert "cannot listen on port" in Meeting(address, 0, "runs/b").end()
  first.append(Meeting(address, 2, "runs/[a]\n"))
  assert [one.end() for one in first] == ["", "", ""]


def test_a_process_that_is_started_twice_is_refused(address):
  first = [Meeting(address, 0), Meeting(address, 1)]
  listening(address)
  both = [Meeting(address, 1)]
  while not any("already there" in (one.ended or "") for one in (*first, *both)):
    both[0].join(0.01)  # whichever came second
  assert "expects 2" in Meeting(address, 2, count=2).end()
  first.append(Meeting(address, 2))
  ended = [one.end() for one in (*first, *both)]
  assert ended.count("") == 3 and first[0].ended == ""


def test_a_port_of_another_program_is_refused(address):
  host, port = address.split(":")
  with socket.create_server((host, int(port))) as other:
    other.settimeout(10)

    def speak():  # as gRPC does: at once, and in bytes
      while True:
        try:
          connection, _ = other.accept()
        except OSError:
          return
        with connection:
          connection.sendall(b"\0\0\x12\x04\0\0\0\0\0\n")

    threading.Thread(target=speak, daemon=True).start()
    assert "by another program" in Meeting(address, 1).end()
    assert "cannot listen on port" in Meeting(address, 0).end()


def test_strangers_and_processes_that_end_are_forgotten(address):
  host, port = address.split(":")
  first = Meeting(address, 0)
  listening(address)
  for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b"{}\n", b"x" * 70_000):
    with socket.create_connection((host, int(port))) as stranger:
      stranger.sendall(said)
  with socket.create_connection((host, int(port))) as ended:
    ended.sendall(b'{"address": "", "count": 3, "index": 1, "run": "a"}\n')
    assert ended.recv(100) == b'"skipalign_jax"\n'
  others = [Meeting(address, 1), Meeting(address, 2)]
  assert [one.end() for one in (first, *others)] == ["", "", ""]


@pytest.mark.parametrize("index", [0, 1])
def test_who_waits_in_vain_names_the_others(address, index):
  ended = Meeting(address, index, timeout=0.3).end()
  assert f"process {index} still waits for {'1, 2' if index == 0 else '0'}." in ended
