# make demo      AMED beside other samplers, made by a real ComfyUI: a picture and a table in demo/out
# make comfyui   the same ComfyUI, left running to be opened in a browser
# make check     ruff, mypy and the engine's tests, without a ComfyUI: some 90 seconds on 2 cores
# make test      everything: engine and WebUI tests, and the pack in a real ComfyUI
# make screenshots   pictures of ComfyUI's page for README and help, by a Chromium that is installed
# make bench     AMED beside every other solver at its best: docs/RESULTS.md, under two hours on 2 cores
# make bench-quick   the same with few noises, in minutes; docs stay as they are
# make bench-search  searches the other solvers' best settings again (an hour)
# make fuzz      broken and hostile files; make faults: disks, kills, memory, NaN; make numerics, make supply, make matrix
# make graphs    an hour of random graphs around every node (ARGS="--minutes 5", "--seed 71", "--file FOUND.json")
# make soak      500 generations through a server, predictors swapped, fitted and deleted between; make hosts: in other
#                versions of ComfyUI (ARGS="folder folder"). Each writes its part of docs/TRUST.md
# make lint, make types, make engine   the parts of make check
#
# All of it happens in .venv and .comfyui (or the ComfyUI that COMFYUI_PATH names).

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip install --disable-pip-version-check -q
PORT   ?= 8188

TRUST  := fuzz faults numerics supply matrix graphs soak hosts

.PHONY: venv host demo comfyui check lint types engine test screenshots bench bench-quick bench-search clean $(TRUST)

venv: $(VENV)/.ready

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PY) -c "import torch, torchvision" 2>/dev/null || $(PIP) torch==2.14.1 torchvision==0.29.1
	@touch $@

# k-diffusion's own requirements are for training with it; its sampling module needs scipy, torchdiffeq, torchsde and tqdm
$(VENV)/.ready: $(VENV)/.torch requirements.txt requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	$(PIP) --no-deps k-diffusion==0.1.1.post1
	@touch $@

host: venv
	@$(PY) -m demo.comfyui install

demo: host
	@$(PY) -m demo.run

comfyui: host
	@$(PY) -m demo.comfyui serve --port $(PORT)

# all three, whatever fails, side by side
check: venv
	@$(MAKE) --no-print-directory -j3 -k lint types engine

lint: venv
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@grep -qF "$$(sed -n 's/^__version__ = /version = /p' amed/__init__.py)" pyproject.toml \
		|| { echo "pyproject.toml and amed/__init__.py have another version"; false; }

types: venv
	@$(PY) -m mypy

# a process a core, one thread each: the tensors are small, and threads that wait for each other on a busy machine cost
# tenfold
engine: venv
	@OMP_NUM_THREADS=1 $(PY) -m pytest tests/engine -n auto --maxprocesses 4 --dist loadfile

# two at a time, each with a ComfyUI of its own
test: host
	@OMP_NUM_THREADS=1 $(PY) -m pytest tests/ -n 2 --dist loadfile

screenshots: host
	@$(PY) -m demo.screenshots $(ARGS)

# one thread each: it starts a process a core
bench bench-quick: host
	@OMP_NUM_THREADS=1 $(PY) -m bench $(if $(filter bench-quick,$@),--quick) $(ARGS)

bench-search: host
	@OMP_NUM_THREADS=1 $(PY) -m bench.search $(ARGS)

$(TRUST): host
	@PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(PY) -m trust.$@ $(ARGS)

clean:
	rm -rf $(VENV) .comfyui .comfyui-data demo/out
