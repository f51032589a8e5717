# The commands of daily work. Everything is built in the release profile, tests too: dependencies
# such as DataFusion compile for many minutes, and with one profile they compile once
# (docs/decisions/0001-one-profile.md).

# Passed to cargo: CARGO_FLAGS=--locked in CI.
CARGO_FLAGS ?=
# Passed to the test programs: make test TEST_FLAGS='crash --nocapture'.
TEST_FLAGS ?=

# Tests run in their crate's folder, so the paths that they take from here are absolute.
export CALVE_PYTHON ?= $(CURDIR)/.venv/bin/python
export CALVE_FIXTURES ?= $(abspath $(CURDIR)/../shared/fixtures)

.DEFAULT_GOAL := help
.PHONY: help test test-spark setup bench fmt lint deny ci demo clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: setup ## install what the tests need, then run every test
	@# The end-to-end tests start the binary, so it is built first; the features are the same in both.
	cargo build --release $(CARGO_FLAGS) -p calve
	cargo test --release --workspace --no-fail-fast $(CARGO_FLAGS) -- $(TEST_FLAGS)

test-spark: ## Spark as a reader of tables of changes; needs Java, and downloads 370 MB once
	@scripts/setup-tests --spark
	cargo build --release $(CARGO_FLAGS) -p calve
	cargo test --release $(CARGO_FLAGS) -p calve -p calve-e2e --test all -- --ignored spark

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
