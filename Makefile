# `make help` lists the targets. Everything is set up in .venv, once.
PYTHON ?= python3
ROS ?= jazzy
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
VIDEO ?=
LIVE ?=
SHELL := /bin/bash
export VIDEO  # its name may hold anything

# A sourced ROS distribution brings rclpy and the messages, built against its own numpy, whose major
# version must therefore stay; anywhere else the wheels named by ROS (jazzy or kilted) stand in.
ifdef ROS_DISTRO
  VENV_FLAGS := --system-site-packages
  EXTRA :=
  CONSTRAIN := $(BIN)/python -c 'import numpy; print(f"numpy<{int(numpy.__version__[0]) + 1}")' \
               > $(VENV)/constraints.txt
else
  VENV_FLAGS :=
  EXTRA := $(ROS),
  CONSTRAIN := : > $(VENV)/constraints.txt
endif
# Twice quiet: errors only, no warnings of root, caches or other packages.
INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check -c $(VENV)/constraints.txt

RUNTIME := .venv-$(notdir $(PYTHON))-$(ROS)
BENCH ?=

.PHONY: help demo dev test test-runtime soak bench-node check-trt weights paper pose picture docs lint clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16
	@echo 'Variables: PYTHON=$(PYTHON)  ROS=$(ROS) (wheels; unused where ROS_DISTRO is set)  VIDEO=  JOBS=$(JOBS)'

demo: $(VENV)/stamp-run  ## Camera, node and recorder over ROS 2; overlay in build/demo (VIDEO=file, folder or device; LIVE=1: a page in the browser)
	@$(if $(LIVE),$(INSTALL) 'aiohttp>=3.8')
	@$(BIN)/python -m cotracker_ros.demo --output build/demo $(if $(VIDEO),--video "$$VIDEO") $(if $(LIVE),--live)

dev: $(VENV)/stamp-dev  ## .venv with the package (editable) and all development tools, torch too

# A worker that dies ends the run: where xdist starts another, it may wait for ever.
test: $(VENV)/stamp-dev  ## All tests, JOBS=2 files at a time
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --max-worker-restart=0 --durations=15

test-runtime:  ## Tests in an environment with only what running needs (PYTHON=python3.12 ROS=kilted)
	$(MAKE) --no-print-directory VENV=$(RUNTIME) $(RUNTIME)/stamp-test
	$(RUNTIME)/bin/python -m pytest

soak: $(VENV)/stamp-dev  ## 100,000 frames through the streaming runtime
	$(BIN)/python -m pytest -m soak -rP --show-capture=stdout

bench-node: $(VENV)/stamp-run  ## Rate, age, CPU and memory of the node under a VGA camera (BENCH='--seconds 600')
	$(BIN)/python -m cotracker_ros.demo.bench $(BENCH)

check-trt: $(VENV)/stamp-dev  ## Build engines with the real TensorRT-RTX parser and builder, in its own environment
	bash export/check_trt.sh $(BIN)/python

weights: $(VENV)/stamp-dev  ## Weights by the recipe of config/weights, stage by stage; stopped, it goes on by the same command
	$(BIN)/python train/weights.py config/weights --publish runs/weights/realtime.safetensors
	$(BIN)/python export/export_onnx.py --checkpoint runs/weights/realtime.safetensors \
	  --output runs/weights/realtime.onnx

paper: $(VENV)/stamp-dev  ## Tables and figures of accuracy and speed into docs/results
	$(BIN)/python train/experiments.py --badja ../shared/davis --held-out runs/held_out.npz

pose: $(VENV)/stamp-dev  ## Ablations of pose tracking and their page into docs/results/pose
	nice $(BIN)/python train/pose_study.py

picture: $(VENV)/stamp-dev  ## The moving picture of the README
	$(BIN)/python docs/make_picture.py

docs: $(VENV)/stamp-dev  ## The documentation site into build/docs; warnings and broken links are errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

lint: $(VENV)/stamp-dev  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:  ## Remove what builds and runs left behind (not .venv)
	rm -rf build dist install log *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

# An environment made by hand is completed, not replaced: pip installs only what is missing.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo 'Python 3.10 or newer is needed; this is '"$$($(PYTHON) --version)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo 'This Python cannot make environments: apt install python3-venv'; exit 1; }
	@$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)

$(VENV)/stamp-run: setup.py | $(VENV)/bin/python
	@echo 'Installing what the node and the demo need into $(VENV), once'
	@$(CONSTRAIN)
	@$(INSTALL) --editable '.[$(EXTRA)video]'
	@touch $@

$(VENV)/stamp-test: setup.py | $(VENV)/bin/python
	$(CONSTRAIN)
	$(INSTALL) --editable '.[$(EXTRA)test]'
	touch $@

$(VENV)/stamp-dev: setup.py | $(VENV)/bin/python
	$(CONSTRAIN)
	$(INSTALL) --editable '.[$(EXTRA)dev]'
	touch $@ $(VENV)/stamp-run
