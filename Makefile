# make demo [DATA=folder] [KEEP=0]   install what is needed, run examples/ablation.yaml, show the comparison
# make test                          install what is needed, run the tests
# make slow                          install what is needed, run the tests that take minutes (docs/testing.md)
# make check                         format, lint, types, layers
# make docs                          build the documentation as a site in ./site, and check its links
# make images                        take the pictures of docs/images anew, from a real run of the demo
# make bench                         measure, and write the table of docs/performance.md
# make requirements                  pin again, after pyproject.toml has changed
.PHONY: demo test slow check docs images bench requirements clean
VENV := .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)

demo: $(VENV)/.local
	$(VENV)/bin/mcf demo $(if $(DATA),--data "$(DATA)") $(if $(filter 0,$(KEEP)),--no-keep)

test: $(VENV)/.dev
	scripts/test-packages
	scripts/test

slow: $(VENV)/.dev
	scripts/test-packages
	scripts/test-slow

check: $(VENV)/.dev
	scripts/check

docs: $(VENV)/.dev
	scripts/docs

images: $(VENV)/.dev
	$(VENV)/bin/python scripts/images

bench: $(VENV)/.dev
	$(VENV)/bin/python -m tests.bench

requirements: $(VENV)/.uv
	scripts/requirements

$(VENV)/.uv:
	@PYTHON="$(PYTHON)" scripts/install uv
$(VENV)/.local: $(VENV)/.uv requirements/local.txt pyproject.toml
	@scripts/install local
$(VENV)/.dev: $(VENV)/.uv requirements/dev.txt pyproject.toml
	@scripts/install dev

clean:
	rm -rf $(VENV) .mcf site
