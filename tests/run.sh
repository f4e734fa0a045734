#!/usr/bin/env bash
# The whole test: called by `make test` with BIN, the bin folder of an environment that holds the package.
set -euo pipefail
cd "$(dirname "$0")/.."
# empty: what is compiled is kept, as hundreds of processes import the package
export PATH="$BIN:$PATH" OMP_WAIT_POLICY=PASSIVE MPLBACKEND=agg PYTHONDONTWRITEBYTECODE=
say() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }
tree() { find nbs fwi_i2sb -type f -not -path '*/.*' -not -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum; }

say "export and clean change nothing"
before=$(tree)
nbdev_export
nbdev_clean
diff <(echo "$before") <(tree) || { echo "run nbdev_export and nbdev_clean, and commit what they change"; exit 1; }

say "README.md is rendered from nbs/index.ipynb"
fresh=$(mktemp -d)
layers=
trap 'kill $layers 2>/dev/null || true; rm -rf "$fresh"' EXIT
# whatever a test or a notebook leaves goes with it
mkdir "$fresh/t"
export TMPDIR=$fresh/t
python tests/readme.py "$fresh/README.md"
diff README.md "$fresh/README.md" || { echo "run make readme, and commit"; exit 1; }

say "lines, names and imports"
ruff check --quiet
lint-imports --no-cache >"$fresh/imports" || { cat "$fresh/imports"; exit 1; }

say "the example that most notebooks and tests share; the larger one is made beside them"
OMP_NUM_THREADS=1 timeout 10800 python -c "from fwi_i2sb.examples import layers_run; layers_run()" & layers=$!
OMP_NUM_THREADS=1 timeout 10800 python -c "
from fwi_i2sb.examples import mini_run
from fwi_i2sb.sweeps.equal_budget import small_data
mini_run(); small_data(n_train=16, n_val=4, layers=(4, 8))"

# then the tests: beside each other, on two cores, they took a third more of processor time
say "every notebook's cells"
OMP_NUM_THREADS=1 timeout 10800 nbdev_test --n_workers 2 && notebooks=0 || notebooks=$?
wait $layers || notebooks=$?
layers=

# more at once than there are cores, as many tests wait for what they start
say "contracts across chapters, commands, faults, several processes"
timeout 10800 python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --basetemp "$fresh/pytest" \
    --durations 20 tests && tests=0 || tests=$?
[ $notebooks = 0 ] || echo "a notebook failed: see above" >&2
[ $notebooks$tests = 00 ] || { df -h "$fresh" >&2; exit 1; }
say "done"
