set positional-arguments

# list the recipes
default:
    @just --list

# three masters, faults under load, and the outcome of every operation
demo *args:
    uv run pgha demo "$@"

# tests wait for servers most of the time: several workers per core
workers := env("PGHA_WORKERS", "8")

# every behaviour once on each loop, against real servers, in less than five minutes
test *args:
    uv run pytest -n {{workers}} --dist worksteal -m "not thorough" "$@"

# all tests of behaviour: both major versions, containers, the wheel; the chaos suite has a recipe of its own
test-all *args:
    uv run pytest -n {{workers}} --dist worksteal "$@"

# check formatting, lint, types, import layers, the pure core and the public names
check:
    uv run ruff format --check .
    uv run ruff check .
    uv run mypy
    uv run lint-imports
    uv run pytest -q tests/packaging/test_architecture.py tests/packaging/test_breaks_fit.py tests/packaging/test_docstrings.py tests/packaging/test_import_rules.py tests/packaging/test_prose.py tests/packaging/test_public_api.py

# a trial keeps a core busy; its rules know how late an answer may be
chaos_workers := env("PGHA_CHAOS_WORKERS", "3")

# the chaos suite: all scenarios, random schedules on local nodes and in containers, the cut sweep (8 minutes on two cores)
chaos *args:
    uv run pytest -n {{chaos_workers}} --dist worksteal tests/chaos "$@"

# the chaos suite for hours: `times` as many schedules, with new seeds, and the whole sweep on both loops
chaos-long times="20" *args:
    shift; PGHA_LONG=1 PGHA_SCHEDULES={{times}} uv run pytest -n {{chaos_workers}} --dist worksteal tests/chaos "$@"

# make the image for nodes in containers, offline, from the servers on this machine; print its name
image *args:
    uv run python -m pgha.chaos image "$@"

# compare the throughput with that of other clients, as ratios within one run
bench *args:
    uv run --group bench python -m bench "$@"

# build the documentation as HTML, in docs/_build
docs:
    PYTHONWARNINGS=ignore::DeprecationWarning:sphinx_autodoc_typehints uv run --group docs sphinx-build -q -W --keep-going docs docs/_build

# fix what ruff can fix
fix:
    uv run ruff check --fix .
    uv run ruff format .
