#!/usr/bin/env bash
# Run every notebook in place, so that what it shows comes from a real run; then clean.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$BIN:$PATH" OMP_WAIT_POLICY=PASSIVE
nbdev_export
for notebook in nbs/[0-9A]*/*.ipynb nbs/experiments/*.ipynb nbs/tutorials/*.ipynb nbs/index.ipynb; do
    [ -e "$notebook" ] || continue
    echo "$notebook"
    timeout 1800 jupyter nbconvert --log-level WARN --to notebook --execute --ExecutePreprocessor.store_widget_state=False --inplace "$notebook"
done
nbdev_clean
python tests/readme.py README.md
