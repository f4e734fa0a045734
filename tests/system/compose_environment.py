"""Options of `buildah run`: the environment of the service in docker/compose.serve.yaml, with a Redis of this machine.

Usage: compose_environment.py REDIS_PORT; variables of compose come from the environment, as for docker compose."""
import os
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

import yaml

compose = Path(__file__).parents[2] / "docker" / "compose.serve.yaml"
services = yaml.safe_load(compose.read_text(encoding="utf-8"))["services"]


def filled(text: str) -> str:
    "A value with ${NAME}, ${NAME:-default} and ${NAME:?must be set} replaced."
    return re.sub(r"\$\{(\w+)(?::(?:-([^}]*)|\?[^}]*))?\}", lambda m: os.environ.get(m[1]) or m[2] or "", text)


given = {name: filled(value) for name, value in services["api"]["environment"].items()}
redis = urlsplit(given["REDIS_URL"])
assert redis.hostname in services and redis.hostname in services["api"]["depends_on"], redis
given["REDIS_URL"] = f"redis://127.0.0.1:{sys.argv[1]}{redis.path}"
print(*(f"--env={name}={value}" for name, value in given.items()), sep="\n")
