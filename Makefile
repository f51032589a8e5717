# The commands of daily work. Everything is built in the release profile, tests too: dependencies
# such as DataFusion compile for many minutes, and with one profile they compile once
# (docs/decisions/0001-one-profile.md). For tests, calve's own crates are compiled with less optimisation
# and more checks (scripts/tests.toml).

# Passed to cargo: CARGO_FLAGS=--locked in CI.
CARGO_FLAGS ?=
# Passed to the test programs: make test TEST_FLAGS='crash --nocapture'.
TEST_FLAGS ?=
# How many end-to-end tests run at a time; most of them wait for most of their time.
E2E_THREADS ?= $(shell expr 2 '*' $$(getconf _NPROCESSORS_ONLN))

# Tests run in their crate's folder, so the paths that they take from here are absolute.
export CALVE_PYTHON ?= $(CURDIR)/.venv/bin/python
export CALVE_FIXTURES ?= $(abspath $(CURDIR)/../shared/fixtures)

CARGO_TEST = cargo test --release --config scripts/tests.toml
# Naming calve keeps the features of the dependencies the same.
E2E = -p calve -p calve-e2e --lib --test all

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help test unit e2e test-spark test-clouds setup bench fmt lint deny ci demo clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: setup unit e2e ## install what the tests need, then run every test

unit: setup ## the tests within the crates
	$(CARGO_TEST) --workspace --exclude calve-e2e --no-fail-fast $(CARGO_FLAGS) -- $(TEST_FLAGS)

e2e: setup ## the tests of the binary
	@# The binary that ships, so it is built as it ships, and last: its features are the same in all three.
	cargo build --release $(CARGO_FLAGS) -p calve
	RUST_TEST_THREADS=$(E2E_THREADS) $(CARGO_TEST) $(E2E) --no-fail-fast $(CARGO_FLAGS) -- $(TEST_FLAGS)

test-spark: ## Spark as a reader of tables of changes; needs Java, and downloads 370 MB once
	@scripts/setup-tests --spark
	cargo build --release $(CARGO_FLAGS) -p calve
	$(CARGO_TEST) $(E2E) $(CARGO_FLAGS) -- --ignored spark

test-clouds: ## Azure Blob Storage; needs Node.js and npm, and installs 190 MB once
	@scripts/setup-tests --clouds
	cargo build --release $(CARGO_FLAGS) -p calve
	$(CARGO_TEST) $(E2E) $(CARGO_FLAGS) -- --ignored clouds::

setup:
	@scripts/setup-tests

bench: ## run the benchmarks, and the peers beside them
	@scripts/setup-tests --bench
	cargo bench --workspace --benches $(CARGO_FLAGS)

fmt: ## format the code
	cargo fmt --all

lint: ## check the format, and run clippy with warnings as errors
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets $(CARGO_FLAGS) -- -D warnings

deny: ## check licences, bans and sources of the dependencies
	scripts/cargo-deny check licenses bans sources

ci: ## run what CI runs
	.ci/run

demo: ## generated events into a local Iceberg table
	cargo run --release $(CARGO_FLAGS) -- demo

clean: ## remove what was built and the tests' Python environment
	cargo clean
	rm -rf .venv
