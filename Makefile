PYTHON ?= python

pytest:
	$(PYTHON) -m pytest -n 2

type:
	$(PYTHON) -m mypy

lint:
	$(PYTHON) -m ruff check .

format:
	$(PYTHON) -m ruff check --select I --fix .
	$(PYTHON) -m ruff format .

check-codestyle:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

commit-checks: format type lint

doc:
	$(PYTHON) -m mkdocs build --strict

.PHONY: pytest type lint format check-codestyle commit-checks doc
