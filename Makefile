# make tutorial [NB=00] · make test · make lab · make bench · make gpu-check · make site · make site-test · make slides · make student · make grade HAND_INS=folder · make clean · for maintainers: make format · make check · make publish · make lock
PYTHON ?= python3
VENV_PYTHON := .venv/bin/python
NB ?=
HAND_INS ?=

.DEFAULT_GOAL := tutorial
.PHONY: site site-test slides student grade setup tutorial test lab bench gpu-check clean format check publish lock

setup:  ## .venv with the exact pins; does nothing when it is up to date
	@$(PYTHON) tools/setup_env.py

tutorial: setup  ## run the notebooks in order; executed copies go to build/notebooks
	@$(VENV_PYTHON) -m prompteol_utils fetch
	@$(VENV_PYTHON) -m tools.notebooks run $(NB)

test: setup  ## ruff, pytest, every notebook in the smoke profile, nbval; all of them, even when one fails
	@$(VENV_PYTHON) tools/test_all.py

lab: setup  ## read and run the notebooks yourself
	@$(VENV_PYTHON) -m jupyterlab notebooks

gpu-check: setup  ## on a machine with an NVIDIA card: right, fitting and fast? some ten minutes, records in data/results
	@$(VENV_PYTHON) benchmarks/gpu_check.py

bench: setup  ## sentences a second by engine, side by side; on a machine that does nothing else
	@$(VENV_PYTHON) benchmarks/encode.py

site: setup  ## the course site in build/site, from the stored outputs; needs the extra "site"
	@$(VENV_PYTHON) -m pip install -q --disable-pip-version-check --no-deps -r requirements-site.lock
	@$(VENV_PYTHON) -m tools.site

site-test: site  ## every page of the site in headless Chromium, where there is one
	@$(VENV_PYTHON) -m tools.site_check

slides: setup  ## one deck a lesson, HTML and PDF, in build/slides; needs npm, and Chromium for the PDF and for a look at each slide
	@$(VENV_PYTHON) -m pip install -q --disable-pip-version-check --no-deps -r requirements-site.lock
	@$(VENV_PYTHON) -m tools.slides

student: setup  ## lessons without solutions and outputs, with all they need: build/student, a folder and a zip file
	@$(VENV_PYTHON) -m tools.student

grade: setup  ## points of the hand-ins HAND_INS/NAME/00_quickstart.ipynb, as build/grades/points.csv
	@$(VENV_PYTHON) -m tools.grade $(HAND_INS)

clean:  ## executed copies and caches in this folder; .venv and the models stay
	rm -rf build .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

format: setup  ## what ruff and the notebook rules can mend by themselves
	$(VENV_PYTHON) -m ruff check --fix --quiet .; $(VENV_PYTHON) -m ruff format --quiet .
	$(VENV_PYTHON) -m tools.notebooks clean
	$(VENV_PYTHON) -m tools.results_tables

check: setup
	$(VENV_PYTHON) -m ruff check . && $(VENV_PYTHON) -m ruff format --check . && $(VENV_PYTHON) -m tools.notebooks check

publish: setup  ## run the default profile and write its outputs into notebooks/
	@$(VENV_PYTHON) -m tools.notebooks run --publish $(NB)

lock: setup  ## new exact pins; look at the difference before committing it
	@$(VENV_PYTHON) tools/make_lock.py
