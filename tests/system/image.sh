#!/usr/bin/env bash
# Build docker/Dockerfile and docker/Dockerfile.serve without a Docker engine, on a Debian root made here, and try what the images promise.
# FOLDER holds everything.
set -euo pipefail
folder=$1
cd "$(dirname "$0")/../.."
export BUILDAH_ISOLATION=chroot
# overlay copies nothing; where it cannot be mounted, as inside many containers, vfs copies every layer
driver=overlay
buildah() { command buildah --storage-driver "$driver" --root "$folder/storage" --runroot "$folder/runroot" "$@"; }
buildah info >"$folder/info.log" 2>&1 || driver=vfs
say() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }

say "a Debian root as the base image"
base=$(buildah from scratch)
debootstrap --variant=minbase bookworm "$(buildah mount "$base")" >"$folder/debootstrap.log" || { tail -5 "$folder/debootstrap.log"; exit 1; }
buildah commit --quiet --rm "$base" localhost/debian >/dev/null

mounts=$(python3 tests/system/pip_mounts.py "$folder")
build() { # FILE TAG
    say "docker/$1"
    buildah bud --network host $mounts --build-arg BASE=localhost/debian \
        --ignorefile "docker/$1.dockerignore" -f "docker/$1" -t "localhost/$2" . >"$folder/$2.log" 2>&1 || { tail -30 "$folder/$2.log"; exit 1; }
    say "docker/$1 is built"
}
redis=
# a build that still runs writes into FOLDER: it ends first
trap 'kill $redis 2>/dev/null || true; wait' EXIT
build Dockerfile.serve fwi-i2sb-serve >"$folder/serve.log" & serve=$!
build Dockerfile fwi-i2sb

say "from inside docker/ the build says what to type"
if (cd docker && buildah bud --build-arg BASE=localhost/debian --ignorefile Dockerfile.dockerignore -f Dockerfile .) \
    >"$folder/wrong.log" 2>&1; then echo "it was built"; exit 1; fi
grep -qx "    docker build -f docker/Dockerfile -t fwi-i2sb ." "$folder/wrong.log"

try_inside() { # TAG SCRIPT OPTIONS OF buildah run
    say "inside the image $1"
    container=$(buildah from "localhost/$1")
    du -sh "$(buildah mount "$container")"
    buildah run --network host "${@:3}" --volume "$PWD/tests/system/$2:/mnt/$2:ro" "$container" bash "/mnt/$2"
    buildah rm "$container" >/dev/null
}
try_inside fwi-i2sb inside.sh
wait $serve || { cat "$folder/serve.log"; exit 1; }
cat "$folder/serve.log"

# as compose starts it: with its environment, and a Redis
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
redis-server --port "$port" --dir "$folder" --save "" --appendonly yes >"$folder/redis.log" & redis=$!
SECRET_API_KEY=word python tests/system/compose_environment.py "$port" >"$folder/environment"
mapfile -t environment <"$folder/environment"
try_inside fwi-i2sb-serve inside_serve.sh "${environment[@]}"
# an hour, as compose has it; counts of a limit are gone after a minute
redis-cli -p "$port" --scan --pattern "fwi_i2sb:details:curvevel-a:*" | grep -q . || { echo "the service kept nothing in Redis"; exit 1; }
say "done"
