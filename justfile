set positional-arguments

# list the recipes
default:
    @just --list

# three masters, faults under load, what became of every operation
demo *args:
    uv run pgha demo "$@"

# every test of behaviour, on both loops, against real servers
test *args:
    uv run pytest "$@"

# formatting, lint, types, layers, the pure core, the public face
check:
    uv run ruff format --check .
    uv run ruff check .
    uv run mypy
    uv run lint-imports
    uv run pytest -q tests/house

# the chaos suite alone
chaos *args:
    uv run pytest tests/chaos "$@"

# throughput side by side with peers, as ratios in one run
bench *args:
    uv run --group bench python -m bench "$@"

# the documentation as HTML, in docs/_build
docs:
    PYTHONWARNINGS=ignore::DeprecationWarning:sphinx_autodoc_typehints uv run --group docs sphinx-build -q -W --keep-going docs docs/_build

# mend what ruff can mend
fix:
    uv run ruff check --fix .
    uv run ruff format .
