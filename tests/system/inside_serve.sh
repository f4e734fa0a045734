#!/usr/bin/env bash
# What the image of the service promises, tried inside it.
set -euo pipefail
[ "$(id -un)" = fwi ] && [ ! -w /opt/venv ]

# without a key it does not start
env -u SECRET_API_KEY fwi-i2sb serve /runs 2>/tmp/refusal && exit 1 || [ $? = 2 ]
grep -q "SECRET_API_KEY is not set" /tmp/refusal

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export OMP_NUM_THREADS=1
fwi-i2sb serve /runs --port "$port" 2>/tmp/log & server=$!
trap 'cat /tmp/log; kill $server' ERR
python3 - "$port" <<'P'
import io, json, os, sys, time, urllib.request

import numpy as np

address, key = f"http://127.0.0.1:{sys.argv[1]}", {"X-API-Key": os.environ["SECRET_API_KEY"]}
def ask(path, body=None, **headers):
    request = urllib.request.Request(address + path, data=body, headers=key | headers)
    with urllib.request.urlopen(request, timeout=600) as answer: return answer.read()

for second in range(60):  # as the image's own check of its health does
    try: ask("/health")
    except OSError: time.sleep(1)
    else: break
assert json.loads(ask("/api/v1/models")) == {"models": ["curvevel-a"]}
assert json.loads(ask("/api/v1/models/curvevel-a"))["output_shape"] == [70, 70]
assert b"<!doctype html>" in ask("/", Accept="text/html") and b"import" in ask("/static/page/page.js")
record = ask("/api/v1/models/curvevel-a/example")
kind = {"Content-Type": "application/octet-stream"}
answer = np.load(io.BytesIO(ask("/api/v1/predict/curvevel-a?samples=1&nfe=1&refine=0", record, **kind)))
print({name: answer[name].shape for name in answer.files})
assert answer["map"].shape == (70, 70) and np.isfinite(answer["map"]).all()
health = json.loads(ask("/health"))
assert health["status"] == "ok" and health["dependencies"]["redis"] == "up", health
P
trap - ERR
kill $server
wait $server || [ $? = 143 ]
