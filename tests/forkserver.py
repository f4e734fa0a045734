"""Python programs of tests, in forks of a process that has loaded the libraries already.

An interpreter spends six seconds of a core on torch and its like, a fork none: the package itself it imports afresh.
`start` and `run` take what `subprocess.Popen` takes, and start a real interpreter wherever a fork would differ:
another command than Python, another environment at its start, code to run before it.

One server per process of pytest, started when it is needed, gone with it. For a program it forks twice:
the first waits for the second, the program, and tells its end, as pytest cannot wait for what is not its child."""
import atexit
import contextlib
import gc
import importlib
import json
import multiprocessing.process
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from functools import cache

LIBRARIES = ("torch._dynamo", "torch.utils.tensorboard", "accelerate", "lmdb", "matplotlib.pyplot", "cmcrameri.cm",
    "mpl_toolkits.axes_grid1", "tyro", "typeguard", "pydantic.dataclasses", "psutil", "yaml", "safetensors", "filelock")
# what an interpreter or a library reads when it starts
AT_START = ("PYTHON", "OMP_", "MKL_", "LD_", "LC_", "LANG", "MPL", "TORCH", "CUDA", "XDG_", "HOME")
PATIENCE = 900  # seconds: no test waits for ever, and none depends on how busy the machine is


def at_start(env) -> dict: return {name: value for name, value in env.items() if name.startswith(AT_START)}


def packets() -> tuple[socket.socket, socket.socket]: return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


STARTING = threading.Lock()


@cache
def server() -> tuple[socket.socket, dict]:
    "Start the server of this process; the socket of its requests, and the environment that it began with."
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    ours, its = packets()
    process = subprocess.Popen([sys.executable, __file__, str(its.fileno())], env=env, pass_fds=[its.fileno()],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    its.close()
    atexit.register(lambda: (process.kill(), process.wait()))
    return ours, at_start(env)


class Forked(subprocess.Popen):
    "A process whose program runs in a fork of the server."

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags,
            shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask,
            start_new_session, process_group):
        self.answer, its = packets()
        request = dict(argv=[os.fspath(word) for word in args[1:]], env=dict(os.environ if env is None else env),
            cwd=os.fspath(cwd or os.getcwd()), session=start_new_session)
        streams = [own if fd == -1 else fd for own, fd in enumerate((p2cread, c2pwrite, errwrite))]
        with its: socket.send_fds(server()[0], [json.dumps(request).encode()], [*streams, its.fileno()])
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
        self.pid, self._child_created = int(self.answer.recv(20)), True

    def _try_wait(self, flags):
        "As `os.waitpid`."
        try: return self.pid, int(self.answer.recv(20, socket.MSG_DONTWAIT if flags else 0))
        except BlockingIOError: return 0, 0

    def _internal_poll(self, *_, **__):
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid: self._handle_exitstatus(status)
        return self.returncode


def start(words, *, env=None, **settings) -> subprocess.Popen:
    "`subprocess.Popen`, in a fork if that makes no difference."
    same = {"stdin", "stdout", "stderr", "text", "cwd", "start_new_session"} >= settings.keys()
    python = words[0] == sys.executable and (words[1] in ("-", "-c", "-m") or str(words[1]).endswith(".py"))
    with STARTING: began = server()[1]
    forked = python and same and at_start(os.environ if env is None else env) == began
    return (Forked if forked else subprocess.Popen)(words, env=env, **settings)


def run(words, *, input="", check=False, **settings) -> subprocess.CompletedProcess:
    "`subprocess.run` that captures text."
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with start(words, **pipes, text=True, **settings) as process:
        try: done = subprocess.CompletedProcess(words, None, *process.communicate(input, timeout=PATIENCE))
        except BaseException: process.kill(); raise
    done.returncode = process.returncode
    if check: done.check_returncode()
    return done


def reap(*_):
    "Wait for those that have ended: `time` counts them."
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]: pass


def serve(requests: socket.socket) -> dict:
    "Answer requests until there are no more; returns, in a process of its own, what is asked for."
    for name in LIBRARIES: importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, reap)
    while True:
        message, descriptors, *_ = socket.recv_fds(requests, 2**20, 4)
        if not message: os._exit(0)
        if not os.fork(): break
        for fd in descriptors: os.close(fd)
    requests.close()
    *streams, answer = descriptors
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        for fd in streams: os.close(fd)
        os.write(answer, str(pid).encode())
        status = os.waitpid(pid, 0)[1]
        try: os.write(answer, str(status).encode())
        finally: os._exit(0)
    os.close(answer)
    for own, fd in enumerate(streams): os.dup2(fd, own)
    for fd in streams: os.close(fd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return json.loads(message)


def execute(argv: list[str], env: dict, cwd: str, session: bool):
    "Be an interpreter with these arguments."
    if session: os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    multiprocessing.process.ORIGINAL_DIR = cwd  # where spawned processes begin
    tempfile.tempdir = None  # what another TMPDIR said
    how, *rest = argv
    module = how == "-m"
    sys.path[0] = cwd if module else os.path.dirname(os.path.abspath(how)) if how.endswith(".py") else ""
    sys.argv = rest if module else argv
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if module: runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif how.endswith(".py"): runpy.run_path(how, run_name="__main__")
    else:
        code = rest[0] if how == "-c" else sys.stdin.read()
        sys.argv = [how, *rest[how == "-c":]]
        exec(compile(code, "<string>" if how == "-c" else "<stdin>", "exec"), vars(main))


if __name__ == "__main__": execute(**serve(socket.socket(fileno=int(sys.argv[1]))))
