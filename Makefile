# make demo    set up, then train, score, compare and draw four detectors
# make test    set up, then lint and run the tests; make test-slow those of minutes
# STACK=openmmlab takes the upstream stack, in an environment of its own
STACK ?= onedl
PYTHON ?= python3
VENV := .venv$(if $(filter-out onedl,$(STACK)),-$(STACK))
READY := $(VENV)/ready

DEMO := bilinear deconv carafe dlu
DEMO_DIR ?= work_dirs/demo
DEMO_DATA := data/shapes
config = configs/shapes/faster-rcnn_r18_fpn-$(1)_shapes.py
last_checkpoint = $(DEMO_DIR)/faster-rcnn_r18_fpn-$(1)_shapes/seed0/last_checkpoint

.PHONY: demo test test-slow lint clean
demo: $(READY)
	@echo '== 1/3 data: $(DEMO_DATA)'
	$(VENV)/bin/python -m dlu_mmdet.datasets.make_shapes $(DEMO_DATA)
	@echo '== 2/3 training and testing four detectors: about 11 minutes on 2 cores'
	$(VENV)/bin/python tools/compare.py --work-dir $(DEMO_DIR) \
	    $(foreach name,$(DEMO),$(call config,$(name)))
	@echo '== 3/3 picture'
	$(VENV)/bin/python tools/visualize.py detections \
	    $(foreach name,$(DEMO),$(call config,$(name)) \
	    $$(cat $(call last_checkpoint,$(name)))) \
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
