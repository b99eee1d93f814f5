"""Programs that a model might write, or that somebody wrote to do harm.

python programs.py [--plain] [NAME …] prints a line of JSON per program: its name, the
outcome, the seconds, the processes of it that are left, and whether its folder is. With
--plain they run as where a system allows no namespaces.
"""

import contextlib
import json
import os
import pathlib
import sys
import tempfile
import textwrap
import time

from skipalign_jax.evals.lm_eval import code_eval, program_child

FORKED = """
import os, signal, sys, time
if os.fork():
  time.sleep(0.1)
else:
  os.setsid()
  for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
"""
# Name: the outcome, whether it may run without namespaces, and the program.
PROGRAMS = {
  "passes": ("passed", True, "pass"),
  "fails": ("failed", True, "assert False"),
  "exit 0": ("failed", True, "import os; os._exit(0)"),
  "exit 87": ("failed", True, "import os; os._exit(87)"),
  "SystemExit": ("failed", True, "raise SystemExit(0)"),
  "crash": ("failed", True, "import ctypes; ctypes.string_at(0)"),
  "kills itself": ("failed", True, "import os; os.kill(os.getpid(), 9)"),
  "stops itself": ("timed out", True, "import os; os.kill(os.getpid(), 19)"),
  "loops": ("timed out", True, "while True: pass"),
  "one call into C": ("timed out", True, "sum([[0] * 999] * 9999999, [])"),
  "recursion": ("failed", True, "f = lambda: f()\nf()"),
  "deep folders": (
    "passed",
    True,
    "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')",
  ),
  "deep and wide folders": (
    "passed",
    True,
    """
    import os
    for i in range(1500):
      open(f'f{i}', 'w').close(); os.symlink('/etc/passwd', f'l{i}')
      os.mkdir('d'); os.mkdir('e'); os.chdir('d')
    for i in range(1500):
      os.chdir('..'); os.chmod('d', 0)
    """,
  ),
  "folders without permissions": (
    "passed",
    True,
    """
    import os
    os.makedirs('a/b/c'); open('a/b/c/d', 'w').close()
    for path in ('a/b/c', 'a/b', 'a', '.'): os.chmod(path, 0)
    """,
  ),
  "pipes, sockets, links, strange names": (
    "passed",
    True,
    """
    import os, socket
    os.mkfifo('p'); socket.socket(socket.AF_UNIX).bind('s'); os.symlink('/', 'root')
    os.symlink('.', 'self'); open(b'\\xff\\n', 'w').close(); os.mkdir('-rf *')
    """,
  ),
  "its folder is gone": (
    "passed",
    True,
    "import os\nwith __import__('contextlib').suppress(OSError): os.rmdir(os.getcwd())",
  ),
  "fills the disk": (
    "failed",
    True,
    """
    for i in range(2000):
      with open(f'f{i}', 'wb') as file:
        for _ in range(100): file.write(bytes(1 << 20))
    """,
  ),
  "many small files": (
    "timed out",
    True,
    """
    import itertools
    for i in itertools.count():
      try: open(f'{i}', 'w').close()
      except OSError: pass
    """,
  ),
  "output": (
    "passed",
    True,
    """
    import os, sys
    for _ in range(200):
      sys.stdout.buffer.write(os.urandom(1 << 20)); print('\\x1b[31m' * 9999)
      print('error', file=sys.stderr)
    """,
  ),
  "closes all": ("failed", True, "import os; os.closerange(0, 4096)"),
  "writes to all": (
    "failed",
    True,
    """
    import os
    for fd in range(100):
      try: os.write(fd, b'{"outcome": "passed", "contained": []}')
      except OSError: pass
    """,
  ),
  "replaces functions": (
    "failed",
    True,
    "import os; os._exit = os.write = lambda *_: None\nassert False",
  ),
  "a child that sleeps": ("passed", True, FORKED + "  time.sleep(99)"),
  "a child that loops": ("passed", True, FORKED + "  while True: pass"),
  "a child that writes": (
    "passed",
    True,
    FORKED + "  i = 0\n  while True:\n    i += 1; open(f'f{i}', 'w').write('a')",
  ),
  "a child that forks for ever": (
    "passed",
    True,
    FORKED + "  while True:\n    if os.fork(): os._exit(0)",
  ),
  "a child that forks, and a loop": (
    "timed out",
    True,
    FORKED + "  while True:\n    if os.fork(): os._exit(0)\nwhile True: pass",
  ),
  "a child of a child": (
    "passed",
    True,
    FORKED + "  if os.fork(): os._exit(0)\n  os.setsid()\n  time.sleep(99)",
  ),
  "another program": (
    "passed",
    True,
    "import subprocess as s; s.Popen(['sleep', '99'], start_new_session=True, env={})",
  ),
  "a fork bomb": ("failed", True, "import os\nwhile True: os.fork()"),
  "a fork bomb in sessions": (
    "failed",
    True,
    "import os\nwhile True:\n  os.fork() or os.setsid()",
  ),
  "memory": ("failed", True, "x = bytearray(1 << 33)"),
  "memory in many": (
    "failed",
    True,
    """
    import os, time
    for _ in range(20):
      if not os.fork():
        x = bytearray(b'a') * (1 << 29)
        time.sleep(9)
    time.sleep(9)
    """,
  ),
  "threads": (
    "failed",
    True,
    """
    import threading, time
    for _ in range(10**6): threading.Thread(target=time.sleep, args=(99,)).start()
    """,
  ),
  "a thread that stays": (
    "passed",
    True,
    "import threading, time; threading.Thread(target=time.sleep, args=(99,)).start()",
  ),
  "ends its watcher": (  # failed without namespaces
    "timed out",
    True,
    "import os, time; os.kill(os.getppid(), 9); time.sleep(5)",
  ),
  "stops its watcher": (
    "passed",
    False,
    "import os, time; os.kill(os.getppid(), 19); time.sleep(0.1)",
  ),
  "ends everything": (
    "failed",
    False,
    "import os; assert os.getpid() < 9; os.kill(-1, 9); os.kill(2, 9)",
  ),
  "writes elsewhere": (
    "passed",
    False,
    """
    import os
    for folder in ('/tmp', '/var/tmp', '/root', '/home', '/etc', '/', '/sys', '/proc'):
      try: open(folder + '/harm', 'w').close()
      except OSError: pass
      else: assert False
    """,
  ),
  "writes to memory": (
    "passed",
    False,
    "open('/dev/shm/a', 'w').write('a'); import multiprocessing as m; m.Lock()",
  ),
  "mounts": (
    "passed",
    False,
    """
    import ctypes, os
    libc = ctypes.CDLL(None)
    assert libc.mount(b'none', b'/', None, 32 | 4096, None) == -1  # not read-only
    assert libc.umount2(os.getcwd().encode(), 2) == -1
    assert libc.unshare(0x20000) == -1
    if libc.unshare(0x10020000) == 0:  # a user namespace of its own may be allowed
      assert libc.mount(b'none', b'/', None, 32 | 4096, None) == -1
      assert not os.access('/', os.W_OK)
    """,
  ),
  "network": (
    "passed",
    False,
    """
    import socket
    server = socket.create_server(('127.0.0.1', 0))
    socket.create_connection(server.getsockname(), 1)  # its own
    for address in ('8.8.8.8', '169.254.169.254', '10.0.0.1'):
      try: socket.create_connection((address, 80), 0.5)
      except OSError as error: assert error.errno == 101  # no network
      else: assert False
    """,
  ),
  "looks at processes": (
    "passed",
    False,
    """
    import os
    found = [int(name) for name in os.listdir('/proc') if name.isdigit()]
    assert not found or max(found) < 9
    for process in found:
      if process == os.getpid(): continue
      for name in ('environ', 'mem', 'fd/1'):
        try: open(f'/proc/{process}/{name}', 'rb').read(1)
        except OSError: pass
        else: assert False
    assert not {'HF_TOKEN', 'HOME'} & set(os.environ)
    """,
  ),
}
PLAIN = f"""
import sys
sys.path.insert(0, {str(pathlib.Path(__file__).parents[2])!r})
from skipalign_jax.evals.lm_eval import program_child
def refuse(*_):
  raise OSError
program_child._enter_namespaces = refuse
program_child.main(int(sys.argv[1]))
"""


@contextlib.contextmanager
def without_namespaces():
  """In the block programs run as where the system allows no namespaces."""
  file = program_child.__file__
  with tempfile.TemporaryDirectory() as folder:
    program_child.__file__ = f"{folder}/plain_child.py"
    pathlib.Path(program_child.__file__).write_text(PLAIN)
    try:
      yield
    finally:
      program_child.__file__ = file


def processes():
  """Those that this process started for programs, and what they started."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    with contextlib.suppress(OSError):
      parts = path.read_bytes().split(b"\0")
      if any(part.endswith((b"program_child.py", b"plain_child.py")) for part in parts):
        if str(os.getpid()).encode() in parts:
          found.append(int(path.parent.name))
      elif parts[:2] == [b"sleep", b"99"]:
        found.append(int(path.parent.name))
  return found


def run(name, timeout=2.0):
  """The outcome, the seconds, and what is left of a program."""
  program = textwrap.dedent(PROGRAMS[name][2])
  with tempfile.TemporaryDirectory() as folder:
    before, tempfile.tempdir = tempfile.tempdir, folder
    start = time.perf_counter()
    try:
      outcome = code_eval.outcome(program + "\n", timeout)
    finally:
      tempfile.tempdir = before
    seconds = time.perf_counter() - start
    return outcome, round(seconds, 2), processes(), os.listdir(folder)


def main(names):
  plain = "--plain" in names
  names = [name for name in names if name != "--plain"]
  with without_namespaces() if plain else contextlib.nullcontext():
    for name in names or PROGRAMS:
      if plain and not PROGRAMS[name][1]:
        continue
      print(json.dumps([name, *run(name), code_eval.notes()]), flush=True)


if __name__ == "__main__":
  main(sys.argv[1:])
