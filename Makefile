# make demo    set up, then train, score, compare and draw four detectors;
#              DATA=deeppcb, nuclei or bccd takes real images, which it fetches
# make test    set up, then lint and run the tests; make test-slow those of minutes
# STACK=openmmlab takes the upstream stack, TORCH=2.1.2 another torch, PYTHON=python3.9
# another Python; each stack and torch in an environment of its own
STACK ?= onedl
DEFAULT_TORCH := 2.13.0
TORCH ?= $(DEFAULT_TORCH)
OTHER_TORCH := $(filter-out $(DEFAULT_TORCH),$(TORCH))
PYTHON ?= python3
VENV := .venv$(if $(filter-out onedl,$(STACK)),-$(STACK))$(if \
    $(OTHER_TORCH),-torch$(TORCH))
READY := $(VENV)/ready
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check

DEMO := bilinear deconv carafe dlu
DATA ?= shapes
DEMO_DIR ?= work_dirs/demo$(if $(filter-out shapes,$(DATA)),-$(DATA))
STEM := faster-rcnn_r18_fpn-bilinear_$(DATA)
MAKE_DATA := $(if $(filter-out shapes,$(DATA)),make_real $(DATA),make_shapes data/shapes)
demo_run = $(DEMO_DIR)/$(STEM)-$(1)/seed0

.PHONY: demo test test-slow lint clean
demo: $(READY)
	@echo '== 1/3 data: data/$(DATA)'
	$(VENV)/bin/python -m dlu_mmdet.datasets.$(MAKE_DATA)
	@echo '== 2/3 training and testing four detectors: about 11 minutes on 2 cores,' \
	    'twice that on real images'
	$(VENV)/bin/python tools/compare.py configs/$(DATA)/$(STEM).py \
	    --upsamplers $(DEMO) --work-dir $(DEMO_DIR)
	@echo '== 3/3 picture'
	$(VENV)/bin/python tools/visualize.py detections \
	    $(foreach name,$(DEMO),$(call demo_run,$(name)).py \
	    $$(cat $(call demo_run,$(name))/last_checkpoint)) \
	    --score-thr 0.6 --out $(DEMO_DIR)/detections.png

test: lint
	$(VENV)/bin/python -m pytest -n auto --dist loadfile

test-slow: $(READY)
	$(VENV)/bin/python -m pytest -n auto -m slow

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf .venv .venv-* build *.egg-info

# mmcv asks for C++17, and the headers of torch 2.15 refuse that
CXX20 := $(CURDIR)/$(VENV)/c++20
ATEN = $(VENV)/lib/python3*/site-packages/torch/include/ATen/ATen.h

# torch before 2.3 was built against numpy 1; what is compiled for one torch does not
# load under another, and pip keeps it by the version of mmcv alone
$(READY): setup.py $(wildcard requirements/*.txt csrc/*.* csrc/*/*.*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9) and \
	    "Python 3.9 or later is needed, $(PYTHON) is " + sys.version)'
	@echo '== setting up $(VENV) with the $(STACK) stack and torch $(TORCH)'
	$(PYTHON) -m venv $(VENV)
	echo 'torch==$(TORCH)' > $(VENV)/constraints.txt
	echo '$(if $(filter 2.1.% 2.2.%,$(TORCH)),numpy<2)' >> $(VENV)/constraints.txt
	$(PIP) install -c $(VENV)/constraints.txt -r requirements/build.txt
	@echo '== mmcv is compiled now: about 10 minutes on 2 cores, once a' \
	    'machine (pip keeps the wheel)'
	if grep -qs 'error C++20' $(ATEN); then \
	    printf '#!/bin/sh\nexec c++ "$$@" -std=c++20\n' > $(CXX20); \
	    chmod +x $(CXX20); export CXX=$(CXX20); fi; \
	    CFLAGS="$${CFLAGS--O2 -g0}" MMCV_WITH_OPS=1 \
	    $(PIP) install -c $(VENV)/constraints.txt \
	    $(if $(OTHER_TORCH),--cache-dir "$$($(PIP) cache dir)/torch-$(TORCH)") \
	    --no-build-isolation -r requirements/$(STACK).txt
	$(PIP) install -c $(VENV)/constraints.txt --no-build-isolation -e '.[test]'
	rm -rf build
	touch $@
