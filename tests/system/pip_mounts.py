"""Let pip in an image build reach what it reaches here: writes FOLDER/pip.conf, prints the options that mount it.

The certificates and the wheel folder of this machine's pip configuration are mounted read-only under /mnt, where no
package writes."""
import re
import subprocess
import sys
from pathlib import Path

conf = Path(sys.argv[1]) / "pip.conf"
listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True,
    check=True).stdout
found = {}
for scope in ("global", "user", "site", ":env:"):  # each overrides the one before
    found |= re.findall(rf"^{scope}\.([\w-]+)='(.*)'$", listed, re.M)

mounts = {conf: "/etc/pip.conf"} | {found[name]: f"/mnt/{name}"
    for name in ("cert", "find-links") if Path(found.get(name, "")).is_absolute()}
kept = {name: mounts.get(found[name], found[name])
    for name in ("cert", "find-links", "index-url", "proxy", "trusted-host") if name in found}
conf.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in kept.items()))
print(*(f"--volume={source}:{target}:ro" for source, target in mounts.items()))
