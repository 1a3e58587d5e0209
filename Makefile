# make demo    set up, then train, score, compare and draw four detectors;
#              DATA=deeppcb, nuclei or bccd takes real images, which it fetches
# make test    set up, then lint and run the tests; make test-slow those of minutes
# make docs    set up, then build the documentation into build/docs
# make gpu-kit compiled operators for a GPU elsewhere (docs/cuda.md)
# STACK=openmmlab takes the upstream stack, TORCH=2.1.2 another torch, PYTHON=python3.9
# another Python; each in an environment of its own
STACK ?= onedl
PYTHON ?= python3
PYTHON_IS := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# mmcv of the forks is published compiled for these, and otherwise compiled here
DEFAULT_TORCH := $(if $(filter 3.12,$(PYTHON_IS)),2.12.0,$(if $(filter \
    3.10,$(PYTHON_IS)),2.8.0,2.13.0))
TORCH ?= $(if $(filter openmmlab,$(STACK)),2.1.2,$(DEFAULT_TORCH))
VENV := .venv$(if $(filter-out onedl,$(STACK)),-$(STACK))$(if $(filter-out \
    $(DEFAULT_TORCH),$(TORCH)),-torch$(TORCH))$(if $(filter-out \
    python3,$(PYTHON)),-python$(PYTHON_IS))
READY := $(VENV)/ready
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check

# the start of DLU's offsets that docs/results.md recommends
DLU := dlu:offset_init=subpixel
DEMO := bilinear deconv carafe $(DLU)
DATA ?= shapes
DEMO_DIR ?= work_dirs/demo$(if $(filter-out shapes,$(DATA)),-$(DATA))
STEM := faster-rcnn_r18_fpn-bilinear_$(DATA)
MAKE_DATA := $(if $(filter-out shapes,$(DATA)),make_real $(DATA),make_shapes data/shapes)
demo_run = $(DEMO_DIR)/$(STEM)-$(subst =,-,$(subst :,-,$(1)))/seed0

# two trainings of one thread take less time than two threads of one after the other
JOBS ?= $(if $(shell command -v nvidia-smi),1,2)

.PHONY: demo test test-slow lint docs clean
demo: $(READY)
	@echo '== 1/3 data: data/$(DATA)'
	@$(VENV)/bin/python -m dlu_mmdet.datasets.$(MAKE_DATA)
	@echo '== 2/3 training and testing four detectors: about 11 minutes on 2 cores,' \
	    'twice that on real images'
	@OMP_WAIT_POLICY=PASSIVE $(VENV)/bin/dlu_mmdet compare configs/$(DATA)/$(STEM).py \
	    --upsamplers $(DEMO) --work-dir $(DEMO_DIR) --jobs $(JOBS)
	@echo '== 3/3 picture'
	@$(VENV)/bin/dlu_mmdet visualize detections \
	    $(foreach name,$(DEMO),$(call demo_run,$(name)).py \
	    $$(cat $(call demo_run,$(name))/last_checkpoint)) \
	    --score-thr 0.6 --out $(DEMO_DIR)/detections.png

test: lint
	$(VENV)/bin/python -m pytest -n auto --dist loadfile

test-slow: $(READY)
	$(VENV)/bin/python -m pytest -n auto -m slow

# the CPU operators, cross-compiled, under qemu; the script names what it needs
.PHONY: test-aarch64
test-aarch64: $(READY)
	bash tests/helpers/aarch64.sh $(VENV)/bin/python

# what a first run on a GPU elsewhere takes along (docs/cuda.md), for the Python, torch
# and compute capability there: make gpu-kit PYTHON=python3.12 TORCH=2.11.0 ARCH=9.0
ARCH ?= 9.0
KIT := .venv-gpu-kit-$(PYTHON_IS)-torch$(TORCH)
KIT_PIP = $(KIT)/bin/python -m pip --disable-pip-version-check
# the sources of an mmcv, in its folder ops/csrc; by default they are fetched
MMCV ?=
.PHONY: gpu-kit
gpu-kit:
	$(PYTHON) -m venv $(KIT)
	@grep -v '^torch' requirements/build.txt > $(KIT)/build.txt
	$(KIT_PIP) install -q torch==$(TORCH) -r $(KIT)/build.txt
	rm -rf build/gpu_kit $(KIT)/onedl_mmcv-*
	$(KIT_PIP) download -q -d build/gpu_kit/wheels pytest pytest-xdist hypothesis
	-$(if $(MMCV),,$(KIT_PIP) download -q --no-deps --no-build-isolation -d $(KIT) \
	    --no-binary onedl-mmcv $$(grep mmcv requirements/onedl.txt) && \
	    tar -xzf $(KIT)/onedl_mmcv-*.tar.gz -C $(KIT))
	PATH=$(CURDIR)/$(KIT)/bin:$$PATH $(KIT)/bin/python benchmarks/gpu_check.py \
	    --build-only --arch $(ARCH) \
	    --mmcv $(or $(MMCV),$$(echo $(KIT)/onedl_mmcv-*/mmcv/ops/csrc))

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# every warning is an error: a broken link, an unknown anchor, a page that no list has
docs: $(READY)
	@$(PIP) install -q -c $(VENV)/constraints.txt -r requirements/docs.txt
	$(VENV)/bin/python -m sphinx -q -W --keep-going -n -b html docs build/docs
	@echo 'documentation: build/docs/index.html'

clean:
	rm -rf .venv .venv-* build *.egg-info

# mmcv asks for C++17, and the headers of torch 2.14 and later refuse that
CXX20 := $(CURDIR)/$(VENV)/c++20
ATEN = $(VENV)/lib/python3*/site-packages/torch/include/ATen/ATen.h
# pip keeps a wheel by the version of mmcv alone, and it serves one torch
CACHE = --cache-dir "$$($(PIP) cache dir)/torch-$(TORCH)"

# requirements without the bound on torch, which TORCH has; torch before 2.3 was built
# against numpy 1
$(READY): setup.py $(wildcard requirements/*.txt csrc/*.* csrc/*/*.*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9) and \
	    "Python 3.9 or later is needed, $(PYTHON) is " + sys.version)'
	@echo '== 1/3 $(VENV): Python $(PYTHON_IS), torch $(TORCH), a download of up to' \
	    '3 GB'
	@$(PYTHON) -m venv $(VENV)
	@echo 'torch==$(TORCH)' > $(VENV)/constraints.txt
	@echo '$(if $(filter 2.1.% 2.2.%,$(TORCH)),numpy<2)' >> $(VENV)/constraints.txt
	@for name in build $(STACK); do \
	    grep -v '^torch' requirements/$$name.txt > $(VENV)/$$name.txt; done
	@$(PIP) install -q -c $(VENV)/constraints.txt torch -r $(VENV)/build.txt
	@echo '== 2/3 MMDetection: the $(STACK) stack'
	@if [ $(STACK) = onedl ] && $(PIP) install -q onedl-mim && \
	    $(VENV)/bin/mim install -q --retries 0 --only-binary onedl-mmcv \
	    -c $(VENV)/constraints.txt $$(grep mmcv $(VENV)/onedl.txt) \
	    > $(VENV)/mim.log 2>&1; \
	then echo 'mmcv: the published wheel'; else \
	    echo 'mmcv: no published wheel, so it is compiled, about 10 minutes on 2' \
	        'cores, once a machine (pip keeps it)'; \
	    if grep -qs 'error C++20' $(ATEN); then \
	        printf '#!/bin/sh\nexec c++ "$$@" -std=c++20\n' > $(CXX20); \
	        chmod +x $(CXX20); export CXX=$(CXX20); fi; \
	    CFLAGS="$${CFLAGS--O2 -g0}" MMCV_WITH_OPS=1 \
	    $(PIP) install -q -c $(VENV)/constraints.txt $(CACHE) \
	    --no-build-isolation $$(grep mmcv $(VENV)/$(STACK).txt); fi
	@$(PIP) install -q -c $(VENV)/constraints.txt -r $(VENV)/$(STACK).txt
	@echo '== 3/3 dlu_mmdet and the packages of its tests'
	@$(PIP) install -q -c $(VENV)/constraints.txt --no-build-isolation -e '.[test]'
	@rm -rf build
	@touch $@
