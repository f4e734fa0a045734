"""Python programs of tests, in forks of a process that has loaded the libraries already.

An interpreter spends six seconds of a core on torch and its like, a fork none: the package itself it imports afresh.
`start` and `run` take what `subprocess.Popen` takes, and start a real interpreter wherever a fork would differ:
another command than Python, another environment at its start, code to run before it. What such a program spawns by
`multiprocessing` before it is at work is a fork of it that begins afresh. A launcher starts a stand-in, which has a
fork of the server do the work in the environment that the launcher made, and passes on signals and how it ends.

One server per process of pytest, started when it is needed, gone with it. For a program it forks twice:
the first waits for the second, the program, and tells its end, as pytest cannot wait for what is not its child."""
import atexit
import contextlib
import gc
import importlib
import json
import multiprocessing.process
import multiprocessing.util
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from functools import cache

LIBRARIES = ("torch._dynamo", "torch.utils.tensorboard", "accelerate", "lmdb", "matplotlib.pyplot", "cmcrameri.cm",
    "mpl_toolkits.axes_grid1", "tyro", "typeguard", "pydantic.dataclasses", "psutil", "yaml", "safetensors", "filelock")
# what an interpreter or a library reads when it starts
AT_START = ("PYTHON", "OMP_", "MKL_", "LD_", "LC_", "LANG", "MPL", "TORCH", "CUDA", "XDG_", "HOME")
PATIENCE = 900  # seconds: no test waits for ever, and none depends on how busy the machine is


BEFORE = dict(os.environ)  # no test has changed it yet


def at_start(env) -> dict:
    # torch sets the one by itself when it first compiles
    return {name: value for name, value in env.items()
        if name.startswith(AT_START) and name != "TORCHINDUCTOR_CACHE_DIR"}


def packets() -> tuple[socket.socket, socket.socket]: return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


STARTING = threading.Lock()


@cache
def server() -> tuple[socket.socket, dict, str]:
    """Start the server of this process.

    The socket of its requests, the environment that it began with, and the path of the socket for stand-ins."""
    env = BEFORE | {"OMP_NUM_THREADS": "1"}
    ours, its = packets()
    folder = tempfile.TemporaryDirectory(prefix="fork-")
    with its, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.bind(place := f"{folder.name}/door")
        door.listen(64)
        process = subprocess.Popen([sys.executable, __file__, "serve", str(its.fileno()), str(door.fileno())], env=env,
            pass_fds=[its.fileno(), door.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    atexit.register(lambda: (process.kill(), process.wait(), folder.cleanup()))
    return ours, at_start(env), place


def ask(requests: socket.socket, streams, **request) -> tuple[int, socket.socket]:
    "Have the server run a program; its process and the socket that tells its end."
    answer, its = packets()
    with its: socket.send_fds(requests, [json.dumps(request).encode()], [*streams, its.fileno()])
    return int(answer.recv(20)), answer


class Forked(subprocess.Popen):
    "A process whose program runs in a fork of the server."

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags,
            shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask,
            start_new_session, process_group):
        streams = [own if fd == -1 else fd for own, fd in enumerate((p2cread, c2pwrite, errwrite))]
        self.pid, self.answer = ask(server()[0], streams, argv=[os.fspath(word) for word in args[1:]],
            env=dict(os.environ if env is None else env), cwd=os.fspath(cwd or os.getcwd()), session=start_new_session)
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
        self._child_created = True

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


def behind(words) -> list[str]:
    "The words with which a launcher starts a Python program, so that it runs in a fork."
    with STARTING: place = server()[2]
    return [words[0], "-S", __file__, "stand-in", place, *words[1:]]


def interpreter(*libraries: str) -> str:
    "The path of a program that is started like Python and runs in a fork, with these libraries loaded beforehand."
    with STARTING: place = server()[2]
    path = os.path.join(os.path.dirname(place), "-".join(["python", *libraries]))
    words = shlex.join([sys.executable, "-S", __file__, "stand-in", place, f"load={','.join(libraries)}"])
    with open(path, "w") as file: file.write(f'#!/bin/sh\nexec {words} "$@"\n')
    os.chmod(path, 0o755)
    return path


def stand_in(place: str, *argv: str):
    "Be the process that a launcher started, while a fork does the work; it is killed when this process is gone."
    libraries = ""
    if argv[0].startswith("load="): libraries, *argv = argv[0][5:], *argv[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as requests:
        requests.connect(place)
        pid, answer = ask(requests, (0, 1, 2), argv=argv, env=dict(os.environ), cwd=os.getcwd(), session=False,
            leash=True, load=[name for name in libraries.split(",") if name])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: os.kill(pid, number))
    code = os.waitstatus_to_exitcode(int(answer.recv(20)))
    if code < 0:
        if -code != signal.SIGKILL: signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


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


def load(libraries):
    for name in libraries: importlib.import_module(name)
    gc.freeze()


def next_request(requests: socket.socket, door: socket.socket) -> tuple[dict, list[int]]:
    "A request, of pytest or of a stand-in, and its file descriptors; without pytest there is nothing left to do."
    [first, *_], _, _ = select.select([requests, door], [], [])
    with contextlib.ExitStack() as stack:
        if first is door: first = stack.enter_context(door.accept()[0])
        message, descriptors, *_ = socket.recv_fds(first, 2**20, 4)
    if not message: os._exit(0)
    return json.loads(message), descriptors


def serve(requests: socket.socket, door: socket.socket) -> dict:
    "Answer requests until there are no more; returns, in a process of its own, what is asked for."
    load(LIBRARIES)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, reap)
    while True:
        request, descriptors = next_request(requests, door)
        load(request.pop("load", ()))
        if not os.fork(): break
        for fd in descriptors: os.close(fd)
    requests.close()
    door.close()
    *streams, answer = descriptors
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    leash = request.pop("leash", False)
    if pid := os.fork():
        for fd in streams: os.close(fd)
        with contextlib.suppress(BrokenPipeError): os.write(answer, str(pid).encode())  # who asked may be gone by now
        if leash:
            ended = os.pidfd_open(pid)
            if ended not in select.select([ended, answer], [], [])[0]: os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        try: os.write(answer, str(status).encode())
        finally: os._exit(0)
    os.close(answer)
    for own, fd in enumerate(streams): os.dup2(fd, own)
    for fd in streams: os.close(fd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return request


def at_work() -> bool:
    "Whether this process has threads or open databases, which a fork could not begin without."
    with open("/proc/self/maps") as maps: return len(os.listdir("/proc/self/task")) > 1 or ".lmdb" in maps.read()


def spawn(path, args, passfds, real=multiprocessing.util.spawnv_passfds) -> int:
    "As `multiprocessing.util.spawnv_passfds`, but that the process is a fork that begins afresh."
    code = next((word for word in args if isinstance(word, str) and "spawn_main(" in word), None)
    # what tracks resources loads no library
    if code is None or at_work(): return real(path, args, passfds)
    # a signal that comes now is the new process's, not that of a handler of this one
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try: pid = os.fork()
    except OSError: signal.pthread_sigmask(signal.SIG_SETMASK, before); raise
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid
    try:
        begin_afresh({0, 1, 2, *passfds}, before)
        exec(code, {})
    except SystemExit as stop: end = stop.code or 0
    except BaseException: traceback.print_exc(); end = 1
    else: end = 0
    with contextlib.suppress(Exception): sys.stdout.flush(), sys.stderr.flush()
    os._exit(end if isinstance(end, int) else 1)


def begin_afresh(descriptors: set[int], mask: set):
    "Forget what a fork has of its parent: handlers, files, the package."
    gc.freeze()  # nothing of the parent's is closed, or written, a second time
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)): signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for fd in {int(name) for name in os.listdir("/proc/self/fd")} - descriptors:
        with contextlib.suppress(OSError): os.close(fd)
    with open("/proc/self/comm", "w") as name: name.write("spawn_main")  # as `processes.children` finds it
    begin_afresh.kept = dict(sys.modules)
    for name in begin_afresh.kept:
        if name.split(".")[0] == "fwi_i2sb": del sys.modules[name]
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv = ["-c", "--multiprocessing-fork"]


def execute(argv: list[str], env: dict, cwd: str, session: bool):
    "Be an interpreter with these arguments."
    if session: os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    multiprocessing.process.ORIGINAL_DIR = cwd  # where spawned processes begin
    tempfile.tempdir = None  # what another TMPDIR said
    multiprocessing.util.spawnv_passfds = spawn
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


if __name__ == "__main__":
    if sys.argv[1] == "stand-in": stand_in(*sys.argv[2:])
    else: execute(**serve(*(socket.socket(fileno=int(number)) for number in sys.argv[2:])))
