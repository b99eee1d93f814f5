"""The first signal stops a loop, the second one ends the process."""

import signal
import subprocess
import sys

import pytest
import tiny

from skipalign_jax.runtime import signals


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_after_the_step_and_the_second_at_once(first):
  code = (
    "import time; from skipalign_jax.runtime import signals\n"
    "with signals.Stop() as stop:\n"
    "  print('ready', flush=True)\n"
    "  while not stop.requested: time.sleep(0.01)\n"
    "  print(stop.status, flush=True)\n"
    "  time.sleep(60)"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", code], cwd=tiny.ROOT, stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == "ready\n"
  process.send_signal(first)
  _, message, status = (process.stdout.readline() for _ in range(3))
  assert message.startswith("stopping after this step") and "again" in message
  assert status == f"{128 + first}\n"
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=5) == -signal.SIGTERM


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_does_not_wait_for_an_answer_to_the_first(second):
  """As while XLA compiles: one call into C, during which Python calls no handler."""
  code = """if True:
    import ctypes, sys, threading
    from skipalign_jax.runtime import signals
    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    lock(mutex)
    sys.setswitchinterval(1000)  # only the call into C lets the other thread speak
    called = threading.Event()
    tell = lambda: (called.wait(), print("ready", flush=True))
    threading.Thread(target=tell, daemon=True).start()
    with signals.Stop():
      called.set()
      lock(mutex)  # for ever
  """
  process = subprocess.Popen(
    [sys.executable, "-c", code], cwd=tiny.ROOT, stdout=subprocess.PIPE, text=True
  )
  try:
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
      process.wait(timeout=0.3)
    process.send_signal(second)
    assert process.wait(timeout=10) == 128 + second
  finally:
    process.kill()
    process.wait()


def test_signals_are_as_before_after_the_loop():
  before = signal.getsignal(signal.SIGTERM)
  with signals.Stop():
    assert signal.getsignal(signal.SIGTERM) is not before
  assert signal.getsignal(signal.SIGTERM) is before
