#!/usr/bin/env bash
# What needs root: called by `make test-system` with BIN, the bin folder of an environment that holds the package.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$BIN:$PATH" OMP_WAIT_POLICY=PASSIVE MPLBACKEND=agg PYTHONDONTWRITEBYTECODE=
[ "$(id -u)" = 0 ] || { echo "make test-system needs root: it makes network namespaces and builds an image"; exit 2; }
for tool in buildah debootstrap ip munged slurmctld slurmd sbatch chromium redis-server prometheus promtool; do
    command -v $tool >/dev/null || { echo "make test-system needs $tool: bash tests/system/setup.sh installs it"; exit 2; }
done
folder=$(mktemp -d)
chmod 755 "$folder"
image= hosts=
leave() {
    kill $image 2>/dev/null || true
    kill -INT $hosts 2>/dev/null || true
    wait
    # what a build that was stopped had mounted, the innermost first
    awk -v at="$folder/" 'index($2, at) == 1 { print $2 }' /proc/mounts | tac | xargs -r umount
    rm -rf "$folder"
}
trap leave EXIT

# these two beside what follows: the one waits for the disk, the other for hosts that are gone
timeout 3600 bash tests/system/image.sh "$folder" >"$folder/image.log" 2>&1 & image=$!
timeout --signal INT 2400 python -m pytest -q --basetemp "$folder/hosts" --durations 10 tests/system/hosts.py \
    tests/system/slurm.py >"$folder/hosts.log" 2>&1 & hosts=$!

printf '\n== %s\n' "the explorer in JupyterLab, in a browser"
timeout --signal INT 2400 python -m pytest -q --basetemp "$folder/browser" --durations 3 tests/system/browser.py

printf '\n== %s\n' "the page of the service, in a browser"
timeout --signal INT 1200 python -m pytest -q --basetemp "$folder/page" --durations 3 tests/system/page.py

printf '\n== %s\n' "the service with Redis, which is killed and restarted, and with Prometheus"
timeout --signal INT 1200 python -m pytest -q --basetemp "$folder/serving" --durations 3 tests/system/serving.py

printf '\n== %s\n' "ten trainings in a row on two and on four ranks; twenty kills"
REPEATS=10 KILLS=20 timeout --signal INT 3600 python -m pytest -q -n 2 --basetemp "$folder/pytest" --durations 3 tests/test_processes.py -k "run_after_run or killed_at_random"

printf '\n== %s\n' "one training on two hosts: launched on each, by mpirun, by Slurm"
wait $hosts && good=0 || good=$?
cat "$folder/hosts.log"

printf '\n== %s\n' "the images"
wait $image || good=$?
image= hosts=
cat "$folder/image.log"
exit $good
