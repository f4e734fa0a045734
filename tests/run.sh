#!/usr/bin/env bash
# The whole test: called by `make test` with BIN, the bin folder of an environment that holds the package.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$BIN:$PATH" OMP_WAIT_POLICY=PASSIVE MPLBACKEND=agg
say() { printf '\n== %s\n' "$*"; }
tree() { find nbs fwi_i2sb -type f -not -path '*/.*' -not -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum; }

say "export and clean change nothing"
before=$(tree)
nbdev_export
nbdev_clean
diff <(echo "$before") <(tree) || { echo "run nbdev_export and nbdev_clean, and commit what they change"; exit 1; }

say "README.md is rendered from nbs/index.ipynb"
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
python tests/readme.py "$fresh/README.md"
diff README.md "$fresh/README.md" || { echo "run make readme, and commit"; exit 1; }

say "every notebook's cells"
timeout 1800 nbdev_test --n_workers 2

say "one parameterised experiment"
timeout 600 papermill nbs/experiments/10_nfe_sweep.ipynb "$fresh/sweep.ipynb" --no-progress-bar -k python3 -p out_dir "$fresh/sweep"
test -s "$fresh/sweep/metrics.json"

say "contracts across rooms, commands, faults, several processes"
timeout 1800 python -m pytest -q tests
