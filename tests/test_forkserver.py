"What tests start in forks behaves as in an interpreter of its own."
import os
import signal
import subprocess
import sys

import psutil
import pytest
from forkserver import PATIENCE, Forked, behind, run, start

PROGRAMS = {  # with what is given on standard input
    ("-c", "import os, sys; print(sys.argv, __name__, sys.path[0], os.getcwd(), sorted(os.environ.items()))", "a"): "",
    ("-c", "import sys; print(sys.argv, sys.stdin.read()); sys.exit('a sentence')", "a", "b"): "given",
    ("-c", "import atexit; atexit.register(print, 'end'); print(1 / 0)"): "",
    ("-c", "import os; os.kill(os.getpid(), 9)"): "",
    ("-", "a"): "import sys; print(sys.argv, __name__); sys.exit(3)",
    ("here.py", "a"): "",
    ("-m", "here", "a"): "",
}


@pytest.mark.parametrize("words", PROGRAMS, ids=lambda words: " ".join(words)[:30])
def test_a_fork_says_and_ends_as_an_interpreter(words, tmp_path):
    (tmp_path / "here.py").write_text("import sys; print(__name__, __spec__ is None, sys.argv, sys.path[0])")
    real = subprocess.run([sys.executable, *words], cwd=tmp_path, input=PROGRAMS[words], capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"})
    fork = run([sys.executable, *words], cwd=tmp_path, input=PROGRAMS[words], env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert (fork.returncode, fork.stdout) == (real.returncode, real.stdout)
    assert fork.stderr.splitlines()[-1:] == real.stderr.splitlines()[-1:]


def test_a_fork_gets_signals_and_is_waited_for():
    process = start([sys.executable, "-c", "print(flush=True); import time; time.sleep(1000)"], stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True)
    assert isinstance(process, Forked) and process.stdout.readline() and os.getpgid(process.pid) == process.pid
    with pytest.raises(subprocess.TimeoutExpired): process.wait(0.01)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGTERM)
    assert process.communicate(timeout=PATIENCE) == (b"", None) and process.poll() == -signal.SIGTERM


@pytest.mark.parametrize("words, settings", [(["true"], {}), ([sys.executable, "-X", "dev", "-c", ""], {}),
    ([sys.executable, "-c", ""], {"env": os.environ | {"OMP_NUM_THREADS": "2"}}),
    ([sys.executable, "-c", ""], {"preexec_fn": int})])
def test_where_a_fork_would_differ_it_is_an_interpreter(words, settings):
    process = start(words, **settings)
    assert type(process) is subprocess.Popen and process.wait() == 0


SPAWNS = """
import multiprocessing, os, signal, sys

def work(pipe):
    pipe.send([os.environ["WORD"], __name__, sys.argv, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        os.getppid() == multiprocessing.parent_process().pid])
    sys.exit(3)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, print)
    os.environ["WORD"] = "told"
    ours, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=work, args=(its,))
    process.start()
    process.join()
    print(ours.recv(), process.exitcode)
"""


def test_what_a_fork_spawns_begins_afresh(tmp_path):
    (tmp_path / "here.py").write_text(SPAWNS)
    words = [sys.executable, tmp_path / "here.py", "a"]
    real = subprocess.run(words, capture_output=True, text=True, check=True)
    fork = run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    assert fork.stdout == real.stdout and fork.stderr == real.stderr == ""


@pytest.mark.parametrize("code", ["import os, sys; print(os.environ['WORD'], sys.argv); sys.exit(3)",
    "import os; os.kill(os.getpid(), 15)", "import os; os.kill(os.getpid(), 9)"])
def test_a_stand_in_ends_as_the_program(code):
    words, given = [sys.executable, "-c", code, "a"], dict(capture_output=True, text=True,
        env=os.environ | {"WORD": "told"})
    real, other = (subprocess.run(line, **given) for line in (words, behind(words)))
    assert (other.returncode, other.stdout, other.stderr) == (real.returncode, real.stdout, real.stderr)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
def test_no_program_outlives_its_stand_in(number):
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
    process = subprocess.Popen(behind([sys.executable, "-c", program]), stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(process.stdout.readline()))
    process.send_signal(number)
    assert process.wait(PATIENCE) == -number and not psutil.wait_procs([worker], PATIENCE)[1]
    process.stdout.close()
