# make demo      compares AMED with other samplers in a real ComfyUI: a picture and a table in demo/out
# make comfyui   runs the same ComfyUI as a server, to be opened in a browser
# make check     ruff, mypy and the engine's tests, without a ComfyUI: about 90 seconds on 2 cores
# make test      all tests: the engine, the WebUI, and the pack in a real ComfyUI
# make screenshots   pictures of ComfyUI's page for the README and help pages; needs Chromium
# make bench     compares AMED with the best settings of every other solver; writes docs/RESULTS.md in under two hours on 2 cores
# make bench-quick   the same with few noises, in minutes; does not change docs
# make bench-search  searches the other solvers' best settings again (an hour)
# make fuzz      broken and hostile files; make faults: disks, kills, memory, NaN; make numerics, make supply, make matrix
# make graphs    an hour of random graphs around every node (ARGS="--minutes 5", "--seed 71", "--file FOUND.json")
# make soak      500 generations in one server, with predictors swapped, fitted and deleted meanwhile
# make hosts     the tests in other versions of ComfyUI (ARGS="folder folder"). Each of these writes its part of docs/TRUST.md
# make lint, make types, make engine   the parts of make check
#
# Everything is installed in .venv and .comfyui (or COMFYUI_PATH names an existing ComfyUI).

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

# most of k-diffusion's requirements are for training; its sampling module needs scipy, torchdiffeq, torchsde and tqdm
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

# runs all three in parallel, even if one fails
check: venv
	@$(MAKE) --no-print-directory -j3 -k lint types engine

lint: venv
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@grep -qF "$$(sed -n 's/^__version__ = /version = /p' amed/__init__.py)" pyproject.toml \
		|| { echo "pyproject.toml and amed/__init__.py have different versions"; false; }

types: venv
	@$(PY) -m mypy

# one process per core, each with one thread: the tensors are small, and waiting threads make a busy machine ten times slower
engine: venv
	@OMP_NUM_THREADS=1 $(PY) -m pytest tests/engine -n auto --maxprocesses 4 --dist loadfile

# two processes, each with its own ComfyUI
test: host
	@OMP_NUM_THREADS=1 $(PY) -m pytest tests/ -n 2 --dist loadfile

screenshots: host
	@$(PY) -m demo.screenshots $(ARGS)

# one thread each, because it starts one process per core
bench bench-quick: host
	@OMP_NUM_THREADS=1 $(PY) -m bench $(if $(filter bench-quick,$@),--quick) $(ARGS)

bench-search: host
	@OMP_NUM_THREADS=1 $(PY) -m bench.search $(ARGS)

$(TRUST): host
	@PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(PY) -m trust.$@ $(ARGS)

clean:
	rm -rf $(VENV) .comfyui .comfyui-data demo/out
