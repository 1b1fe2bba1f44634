# make        the environment (.venv), from the pinned requirements
# make demo   generate the embedded set, train on it, evaluate, draw
# make quick  lint, types and the fast tests
# make test   lint, types and all tests
PYTHON ?= python3
BIN := .venv/bin

.PHONY: all help demo docs quick test chaos lint types format clean

all: .venv/made ## Make .venv with everything that training, evaluating and testing need
	@echo "ready: 'source .venv/bin/activate', or 'make help' for what there is"

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/'

.venv/made: requirements.txt requirements-dev.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; give PYTHON=…")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -e .
	touch $@

demo: .venv/made ## Generate the embedded set, train SSD300 on it, evaluate, draw pictures (3 to 6 minutes)
	$(BIN)/python -m data.demo demo
	$(BIN)/python train.py experiment=demo
	$(BIN)/python evaluate.py checkpoint=runs/demo/checkpoints/best.pt data.path=demo out=runs/demo/evaluation.json
	@echo "look at runs/demo/report.html, and at the pictures in runs/demo/pictures"
	@echo "TensorBoard: $(BIN)/tensorboard --logdir runs"

docs: .venv/made ## Make the docs' pictures from a run three times as long as the demo's (8 minutes on two cores)
	$(BIN)/python -m data.demo demo
	$(BIN)/python train.py experiment=demo name=docs schedule.epochs=30 schedule.milestones=[20,26] evaluation.every=10
	$(BIN)/python scripts/make_docs.py runs/docs docs

quick: lint types ## Lint, types and the fast tests: a minute and a half on two cores
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "unit and not slow"

test: lint types ## Lint, types and tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

chaos: .venv/made ## Hit real runs with 100 random SIGKILLs and 40 stop signals; about an hour on two cores
	$(BIN)/python scripts/chaos.py

lint: .venv/made ## ruff, and shellcheck if it is installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	if command -v shellcheck > /dev/null; then shellcheck scripts/*.sh; fi

types: .venv/made ## mypy
	$(BIN)/mypy

format: .venv/made ## Format, and fix what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove the environment, the embedded set and its runs
	rm -rf .venv demo runs/demo runs/docs
