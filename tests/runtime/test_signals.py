"""The first signal stops a loop, the second one ends the process."""

import signal
import subprocess
import sys

import pytest
import tiny

from skipalign_jax.runtime import signals


@pytest.mark.parametrize(
  "first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
)
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
  process.send_signal(signal.SIGTERM)  # as `make` passes on what the group has got
  process.send_signal(signal.SIGHUP)  # of the same terminal, if it was one before
  with pytest.raises(subprocess.TimeoutExpired):
    process.wait(timeout=2 * signals.TOGETHER)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=5) == 128 + signal.SIGTERM


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
      process.wait(timeout=2 * signals.TOGETHER)
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


def run_command(work, before=""):
  """Starts a command that says "ready" before it waits for a signal."""
  code = (
    "import signal, time; from skipalign_jax.runtime import errors\n"
    f"{before}\n"
    f"def main():\n  {work}\n"
    "errors.run_command(main)"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", code],
    cwd=tiny.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "ready\n"
  return process


@pytest.mark.parametrize(
  ("number", "said"),
  [
    (signal.SIGINT, "interrupted"),
    (signal.SIGTERM, "stopped by SIGTERM"),
    (signal.SIGHUP, "stopped by SIGHUP"),
    (signal.SIGUSR1, "stopped by SIGUSR1"),
    (signal.SIGUSR2, "stopped by SIGUSR2"),
  ],
)
def test_a_signal_ends_a_command_with_its_number(number, said):
  process = run_command("print('ready', flush=True); time.sleep(60)")
  process.send_signal(number)
  _, stderr = process.communicate(timeout=10)
  assert (process.returncode, stderr) == (128 + number, f"{said}\n")


def test_under_nohup_a_command_survives_the_end_of_its_terminal():
  process = run_command(
    "print('ready', flush=True); time.sleep(0.5)",
    before="signal.signal(signal.SIGHUP, signal.SIG_IGN)",
  )
  process.send_signal(signal.SIGHUP)
  assert process.wait(timeout=10) == 0


def test_a_second_signal_ends_a_command_that_cleans_up_for_too_long():
  process = run_command(
    "try: print('ready', flush=True); time.sleep(60)\n"
    "  finally: print('cleaning', flush=True); time.sleep(60)"
  )
  process.send_signal(signal.SIGTERM)
  assert process.stdout.readline() == "cleaning\n"
  with pytest.raises(subprocess.TimeoutExpired):
    process.wait(timeout=2 * signals.TOGETHER)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=10) == 128 + signal.SIGTERM


def test_a_signal_that_comes_twice_at_once_lets_a_command_clean_up():
  process = run_command(
    "try: print('ready', flush=True); time.sleep(60)\n"
    "  finally: time.sleep(0.2); print('clean', flush=True)"
  )
  for _ in range(3):
    process.send_signal(signal.SIGTERM)
  stdout, stderr = process.communicate(timeout=10)
  assert (process.returncode, stdout) == (128 + signal.SIGTERM, "clean\n")
  assert stderr == "stopped by SIGTERM\n"
