# make demo    set up, then train, score, compare and draw four detectors;
#              DATA=deeppcb, nuclei or bccd takes real images, which it fetches
# make test    set up, then lint and run the tests; make test-slow those of minutes
# STACK=openmmlab takes the upstream stack, in an environment of its own
STACK ?= onedl
PYTHON ?= python3
VENV := .venv$(if $(filter-out onedl,$(STACK)),-$(STACK))
READY := $(VENV)/ready

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
	rm -rf .venv .venv-openmmlab build *.egg-info

$(READY): setup.py $(wildcard requirements/*.txt csrc/*.* csrc/*/*.*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	    "Python 3.10 or later is needed, $(PYTHON) is " + sys.version)'
	@echo '== setting up $(VENV) with the $(STACK) stack'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -r requirements/build.txt
	@echo '== mmcv is compiled now: about 10 minutes on 2 cores, once a' \
	    'machine (pip keeps the wheel)'
	CFLAGS="$${CFLAGS--O2 -g0}" MMCV_WITH_OPS=1 $(VENV)/bin/python -m pip \
	    install --no-build-isolation -r requirements/$(STACK).txt
	$(VENV)/bin/python -m pip install --no-build-isolation -e '.[test]'
	touch $@
