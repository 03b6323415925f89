# Every target sets up all that it needs: an environment in .venv and, where root and apt-get are there, the data.

PYTHON ?= python3
BIN := .venv/bin
FLUENT := @iconify-json/fluent-emoji-flat

# Two spinning threads on two busy cores cost more than they compute; libgomp reads this once, before Python starts.
export GOMP_SPINCOUNT := 0
export HF_HUB_OFFLINE := 1

.NOTPARALLEL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test test-ray test-avalanche lint types layers dependencies docs data clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: .venv/.stamp data ## Sample, judge and verify the embedded models into out/demo; FULL=1 trains them anew first, for hours
	$(if $(filter 1,$(FULL)),$(BIN)/logsnr train fashion --out out/fashion --resume)
	$(BIN)/logsnr demo --out out/demo $(if $(filter 1,$(FULL)),--world out/fashion/pipeline)

test: lint types layers dependencies data ## Every check, then every test
	$(BIN)/python -m pytest

test-ray: .venv/.stamp-ray data ## The server as a Ray Serve deployment, in an environment of its own
	.venv-ray/bin/python -m pytest tests/e2e/test_ray_serve.py

test-avalanche: .venv/.stamp-avalanche ## Diffusion replay inside Avalanche, in an environment of its own
	.venv-avalanche/bin/python -m pytest tests/e2e/test_avalanche.py

lint: .venv/.stamp ## Style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.stamp ## Static types
	$(BIN)/pyrefly check

layers: .venv/.stamp ## Which package may import which
	$(BIN)/lint-imports --no-logo

dependencies: .venv/.stamp ## Declared dependencies against imports
	$(BIN)/deptry .

docs: .venv/.stamp-docs ## The documentation site, into site
	$(BIN)/mkdocs build --strict

benchmark-%: .venv/.stamp data ## Run benchmarks/NAME.py, which writes benchmarks/results/NAME.json
	$(BIN)/python benchmarks/$*.py

data: ## Install Fashion-MNIST, the drawings of emoji, age and Chromium where that is possible, or say how to get them
	@for place in "$$LOGSNR_DATA" /usr/share/datasets/fashion-mnist; do \
	  for folder in "$$place" "$$place/fashion-mnist" "$$place/FashionMNIST/raw"; do \
	    ls "$$folder"/t10k-labels-idx1-ubyte* >/dev/null 2>&1 && exit 0; \
	  done; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y dataset-fashion-mnist; then exit 0; fi; \
	echo "Fashion-MNIST is not installed: set LOGSNR_DATA to a folder with its four IDX files, plain or gzipped"
	@for place in "$$LOGSNR_DATA" /usr/share/fonts/truetype/noto /usr/share/fonts/noto; do \
	  [ -e "$$place/NotoColorEmoji.ttf" ] && exit 0; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y fonts-noto-color-emoji; then exit 0; fi; \
	echo "Noto Color Emoji is not installed: set LOGSNR_DATA to a folder with NotoColorEmoji.ttf"
	@command -v age >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y age; } \
	  || echo "age is not installed: the test that opens key files with it is skipped"
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { [ "$$(id -u)" = 0 ] \
	  && command -v apt-get >/dev/null && apt-get update \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium; } \
	  || echo "Chromium is not installed: the tests of the page in a browser are skipped"
	@for folder in "$$LOGSNR_DATA" .venv/share/logsnr; do \
	  [ -e "$$folder/node_modules/$(FLUENT)/icons.json" ] && exit 0; \
	  [ -e "$$folder/$(notdir $(FLUENT))/icons.json" ] && exit 0; \
	done; \
	if command -v npm >/dev/null && npm install --prefix .venv/share/logsnr --no-audit --no-fund --no-save \
	  --ignore-scripts $(FLUENT)@1.2.6; then exit 0; fi; \
	echo "Fluent Emoji is not installed: say npm install --prefix DIR $(FLUENT)@1.2.6, and set LOGSNR_DATA=DIR"

clean: ## Remove what the targets wrote, but not the environment
	rm -rf out/demo site dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

.venv/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "logsnr needs Python 3.11 or newer: say make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet 'pip>=24.2'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

.venv/.stamp-ray: .venv/.stamp
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip install --quiet -c constraints.txt -e '.[dev,ray]'
	@touch $@

.venv/.stamp-avalanche: .venv/.stamp
	$(PYTHON) -m venv .venv-avalanche
	.venv-avalanche/bin/python -m pip install --quiet -c constraints.txt -e '.[dev,avalanche]'
	@touch $@

.venv/.stamp-docs: .venv/.stamp
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@
