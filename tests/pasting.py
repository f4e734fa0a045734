"Texts whose blocks are pasted into the shell and the Python of one folder, as a reader would."
import os
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from processes import PATIENCE, finish, free_port, python_train

ROOT = Path(__file__).resolve().parent.parent


def blocks(text: str) -> list[tuple[str, str]]:
    "Fenced blocks as (language, content)."
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)


def changed(changes, text: str) -> str:
    for pattern, replacement in changes: text = re.sub(pattern, replacement, text)
    return text


def lines(block: str) -> list[str]:
    "The commands of a block, without comments; continued lines are one, a loop is as many as it runs."
    joined = re.sub(r"\\\n\s*", " ", block)
    each = lambda loop: "\n".join(re.sub(rf"\${loop[1]}\b", value, loop[3]) for value in loop[2].split())
    joined = re.sub(r"^for (\w+) in (.*?); do (.*); done$", each, joined, flags=re.M).splitlines()
    return [line for line in (re.sub(r"(^|\s+)# .*", "", line) for line in joined) if line]


@pytest.fixture
def paste_text(fwi, tmp_path, monkeypatch):
    "Paste a text's blocks into the shell and the Python of one folder."
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("Makefile", "settings.ini", "setup.py", "constraints.txt", "nbs"):
        (tmp_path / name).symlink_to(ROOT / name)
    made = [f"VENV={sys.prefix}", "--assume-old", f"{sys.prefix}/installed"]

    def make(words):
        "The command of a target, in this process where it is ours."
        # a make above this one would have it print directories, and hand it flags
        outer = {name: text for name, text in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        said = subprocess.run(["make", "-n", *made, *words[1:]], capture_output=True, text=True, check=True,
                              env=outer).stdout
        for program, *rest in map(shlex.split, said.splitlines()):
            name = Path(program).name
            if name == "jupyter": answers(["make", *made, *words[1:]])
            elif name == "papermill": subprocess.run([program, *rest], capture_output=True, check=True)
            else:
                assert name == "fwi-i2sb", said
                run([name, *rest])

    def run(words):
        if words[0] == "make": return make(words)
        if words[:3] == ["python", "-m", "fwi_i2sb.train"]: words = ["fwi-i2sb", "train", *words[3:]]
        if words[:2] == ["python", "-c"]: return exec(words[2], {})
        assert words[0] == "fwi-i2sb", f"neither run nor excused: {words}"
        if "--proc-per-node" in words: return finish(python_train(*words[2:], "--master-port", str(free_port())))
        done = fwi(*words[1:])
        assert done.code == 0, (words, done.err)

    def paste(text, changes, excused):
        done, smaller = 0, partial(changed, changes)
        for language, block in blocks(text):
            if language == "python":
                exec(compile(smaller(block), "README", "exec"), {})
                done += 1
                continue
            for line in lines(block):
                if line.startswith("export "):
                    name, value = shlex.split(line)[1].split("=", 1)
                    monkeypatch.setenv(name, value)
                elif not any(re.search(pattern, line) for pattern in excused):
                    run(shlex.split(os.path.expandvars(smaller(line))))
                    done += 1
        return done
    return paste


def answers(command: list[str]):
    "Start JupyterLab, as the user that runs this test, wait until it says its address, and end it."
    server = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        start_new_session=True)
    try:
        said = ""
        for line in server.stderr:
            said += line
            if re.search(r"http://\S+/lab\?token=", line): return
        raise AssertionError(said)
    finally:
        os.killpg(server.pid, 15)
        server.stderr.close()
        server.wait(timeout=PATIENCE)
