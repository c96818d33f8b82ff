# What people type. Everything here works in a fresh clone on a Debian machine with a C compiler, git and Rust's toolchain.

.DEFAULT_GOAL := help
.PHONY: help demo test bench engines

CARGO ?= cargo

help:
	@echo 'make demo     install what is missing, build, and run the guided demo (a few minutes)'
	@echo 'make test     install what is missing, and run every check and test that a change must pass'
	@echo 'make bench    install the peers, and compare with them'
	@echo 'make engines  install what the tests need'

demo:
	@scripts/engines demo
	$(CARGO) build --profile demo -p mainstay-app
	@home=$$(mktemp -d "$${TMPDIR:-/tmp}/mainstay-demo.XXXXXX") && trap 'rm -rf "$$home"' EXIT && \
	MAINSTAY_HOME="$$home" $(CARGO) run --quiet --profile demo -p mainstay-app -- demo

test: engines
	$(CARGO) xtask ci

bench:
	@scripts/engines bench
	bench/run

engines:
	@scripts/engines
