"""Package metadata: everything comes from settings.ini, the one place that holds it."""
import configparser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
cfg = configparser.ConfigParser(delimiters=["="])
cfg.read(here / "settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]
extras = {key.split("_")[0]: value.split() for key, value in cfg.items() if key.endswith("_requirements")}
# not timm: it brings torchvision, whose wheels fit only one build of torch
extras["all"] = sorted({need for name, needs in extras.items() if name not in ("dev", "zoo") for need in needs})
extras["dev"] += extras["all"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    license="Apache-2.0",
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    packages=find_packages(include=["fwi_i2sb", "fwi_i2sb.*"]),
    include_package_data=True,
    python_requires=f">={cfg['min_python']},<3.14",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    zip_safe=False,
)
