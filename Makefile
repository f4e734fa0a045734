# Every target makes its own environment first: Python 3.11 and make are all that a fresh machine needs.
PYTHON ?= python3.11
VENV   ?= .venv
BIN     = $(VENV)/bin
DEMO   ?= demo
LAB    ?= nbs
# JupyterLab refuses to run as root unless it is told to
ROOT_ARGS = $(if $(filter 0,$(shell id -u)),--allow-root)

export OMP_WAIT_POLICY = PASSIVE

.PHONY: help setup demo demo-train test test-system notebooks readme docs pictures lab clean
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(VENV)/installed: settings.ini setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing some 145 packages into $(VENV): minutes, most of them for torch"
	$(BIN)/python -m pip install --use-pep517 $(PIP_ARGS) --constraint constraints.txt --editable ".[dev]"
	# alone: its networks work without torchvision, whose wheels on PyPI are built for CUDA
	$(BIN)/python -m pip install $(PIP_ARGS) --constraint constraints.txt --no-deps timm
	touch $@

setup: $(VENV)/installed  ## make the virtual environment; more options of pip in PIP_ARGS

demo: setup  ## a few unseen records, inverted by the pipeline that comes with the package; more options in DEMO_ARGS
	$(BIN)/fwi-i2sb demo --out $(DEMO) $(DEMO_ARGS)
	$(BIN)/papermill -k python3 nbs/tutorials/00_demo.ipynb $(DEMO)/demo.ipynb -p folder "$(abspath $(DEMO))"

demo-train: setup  ## the whole chain with a training, on a small data set made here: minutes on two cores
	$(BIN)/fwi-i2sb demo-train --out $(DEMO)-train $(DEMO_ARGS)

test: setup  ## everything that needs no root
	BIN="$(abspath $(BIN))" bash tests/run.sh

test-system: setup  ## the explorer in a browser, two hosts, Slurm and the container image: needs root and what tests/system/setup.sh installs
	BIN="$(abspath $(BIN))" bash tests/system/run.sh

notebooks: setup  ## run every notebook again and store its outputs
	BIN="$(abspath $(BIN))" bash tests/notebooks.sh

readme: setup  ## render README.md from nbs/index.ipynb
	$(BIN)/python tests/readme.py README.md

docs: setup  ## the documentation site, into _docs/: no notebook is run, and a warning is an error
	$(BIN)/python docs/build.py _docs

pictures: setup  ## the screenshots of the documentation, from a real run: needs what tests/system/setup.sh installs
	$(BIN)/python tests/system/pictures.py

lab: setup  ## JupyterLab on the notebooks, or on the folder LAB; more options of JupyterLab in LAB_ARGS
	$(BIN)/jupyter lab $(LAB) $(ROOT_ARGS) $(LAB_ARGS)

clean:  ## remove the environment and the demo
	rm -rf $(VENV) $(DEMO) $(DEMO)-train _docs _proc *.egg-info
