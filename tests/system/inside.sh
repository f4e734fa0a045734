#!/usr/bin/env bash
# What the image promises, tried inside it.
set -euo pipefail
say() { printf '\n-- %s\n' "$*"; }
answers() { # URL WORD: waits up to a minute for a server whose answer holds a word
    python - "$@" <<'P'
import sys, time, urllib.request
url, word = sys.argv[1:]
for second in range(60):
    try: text = urllib.request.urlopen(url, timeout=5).read().decode()
    except OSError as error: text = str(error)
    if word in text: break
    time.sleep(1)
print(url, text)
sys.exit(word not in text)
P
}
free_port() { python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
export OMP_NUM_THREADS=1
train="python -m fwi_i2sb.train --result-dir /results --dataset-dir /data --dataset-name CurveVel_A --model tiny --device cpu \
       --batch-size 8 --microbatch 4 --num-itr 3 --log-every 1 --val-batches 1 --val-nfe 1 --precision fp32 --lr 1e-3"
[ "$(id -un)" = fwi ] && [ -w /data ] && [ -w /results ]

say "data, and a short training on them"
fwi-i2sb generate /data --family CurveVel_A --train 16 --val 4 --shard-size 16 --layers 4 8
$train --name one

say "the same with two processes under mpirun, and with one per node"
mpirun --version | head -1
mpirun --allow-run-as-root --oversubscribe -np 2 $train --name two --master-port "$(free_port)"
mpirun --allow-run-as-root -np 1 -npernode 1 bash -c "$train --name node --num-proc-node 1 --node-rank 0 --master-address 127.0.0.1"
python - <<'P'
from fwi_i2sb.training.run_dir import read_metrics
one, *others = ([row["loss"] for row in read_metrics(f"/results/{name}") if "loss" in row] for name in ("one", "two", "node"))
for losses in others: assert len(losses) == 3 and all(abs(a / b - 1) < 1e-5 for a, b in zip(losses, one)), (losses, one)
P

say "a compiled function"
python -c 'import torch; x = torch.rand(9); torch.testing.assert_close(torch.compile(lambda x: x.sin() + 1)(x), x.sin() + 1)'

say "one parameterised experiment"
papermill nbs/experiments/10_nfe_sweep.ipynb /results/sweep.ipynb --no-progress-bar -k python3 \
    -p run_dir /results/one -y "nfe_list: [1, 2]" -p records 4 -p samples 2 -p out_dir /results/sweep
[ -s /results/sweep/metrics.json ]

say "TensorBoard on the training's logs, JupyterLab on the notebooks"
port=$(free_port)
export JUPYTER_TOKEN=word
tensorboard --logdir /results --host 127.0.0.1 --port "$port" --path_prefix /word 2>/dev/null & servers=$!
trap 'kill $servers' EXIT
answers "http://127.0.0.1:$port/word/data/runs" one
answers "http://127.0.0.1:$port/data/runs" "404"
jupyter lab --version
port=$(free_port)
jupyter lab --ip=127.0.0.1 --port="$port" --no-browser --notebook-dir=/opt/fwi_i2sb/nbs 2>/dev/null & servers="$servers $!"
answers "http://127.0.0.1:$port/api" version
answers "http://127.0.0.1:$port/api/contents?token=word" index.ipynb
answers "http://127.0.0.1:$port/api/contents" "403"
python -c 'import nbdev, wandb, mlflow'
