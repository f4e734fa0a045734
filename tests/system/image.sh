#!/usr/bin/env bash
# Build docker/Dockerfile without a Docker engine, on a Debian root made here, and try what the image promises. FOLDER holds everything.
set -euo pipefail
folder=$1
cd "$(dirname "$0")/../.."
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs
buildah() { command buildah --storage-driver "$STORAGE_DRIVER" --root "$folder/storage" --runroot "$folder/runroot" "$@"; }
say() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }

say "a Debian root as the base image"
base=$(buildah from scratch)
debootstrap --variant=minbase bookworm "$(buildah mount "$base")" >"$folder/debootstrap.log" || { tail -5 "$folder/debootstrap.log"; exit 1; }
buildah commit --quiet --rm "$base" localhost/debian >/dev/null

say "docker/Dockerfile"
buildah bud --network host $(python3 tests/system/pip_mounts.py "$folder") --build-arg BASE=localhost/debian \
    --ignorefile docker/Dockerfile.dockerignore -f docker/Dockerfile -t localhost/fwi-i2sb . >"$folder/build.log" 2>&1 || { tail -30 "$folder/build.log"; exit 1; }

say "from inside docker/ the build says what to type"
if (cd docker && buildah bud --build-arg BASE=localhost/debian --ignorefile Dockerfile.dockerignore -f Dockerfile .) \
    >"$folder/wrong.log" 2>&1; then echo "it was built"; exit 1; fi
grep -qx "    docker build -f docker/Dockerfile -t fwi-i2sb ." "$folder/wrong.log"

say "inside the image"
container=$(buildah from localhost/fwi-i2sb)
du -sh "$(buildah mount "$container")"
buildah run --network host --volume "$PWD/tests/system/inside.sh:/mnt/inside.sh:ro" "$container" bash /mnt/inside.sh
say "done"
