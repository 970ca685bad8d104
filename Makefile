# The only entry point for people and CI. `make` alone lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CARGO ?= cargo
PYTHON ?= python3
# Always the whole workspace: another selection unifies features differently and builds the dependencies again.
SCOPE := --workspace --locked
TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
CACHE := $(or $(CHATBOX_CACHE),$(CURDIR)/.cache)
FETCH := $(PYTHON) tests/scripts/fetch.py
# Runs a command beside a MongoDB and a NATS server.
SERVERS := $(PYTHON) tests/scripts/servers.py run mongo nats --
# Fetched programs come last: what the machine has is preferred.
export PATH := $(PATH):$(CACHE)/bin
# `default` or `ci`, see .config/nextest.toml.
PROFILE := $(if $(CI),ci,default)
# Passed on by run, test, bench: `make test ARGS='-E "package(chatbox-core)"'`.
ARGS ?=

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Run

.PHONY: run run-core run-edge web build
run: web build ## the whole product in one process, with a link to open
	@exec $(TARGET_DIR)/debug/chatbox dev $(ARGS)

run-core: build ## core alone: CONFIG=deployments/core.toml
	@exec $(TARGET_DIR)/debug/chatbox-core --config $(or $(CONFIG),deployments/core.toml) $(ARGS)

run-edge: web build ## edge alone: CONFIG=deployments/edge.toml
	@exec $(TARGET_DIR)/debug/chatbox-edge --config $(or $(CONFIG),deployments/edge.toml) $(ARGS)

web: ## build the page, when node is there and the sources are newer
	@.ci/web

build: ## build the binaries (debug)
	$(CARGO) build $(SCOPE) --bins

##@ Test

.PHONY: test test-tools test-build test-rust test-web e2e fuzz chaos bench cover
test: test-tools web test-build test-rust test-web e2e ## everything that shows the product works

test-tools: ## fetch the programs that the tests use
	@$(FETCH) buf grpcurl kosoku llmock aiosmtpd llama smollm2 chromium mongod nats-server $(if $(shell command -v cargo-nextest),,cargo-nextest)

# Binaries and tests in one go: the tests start the binaries.
test-build:
	$(CARGO) build $(SCOPE) --bins --tests

test-rust: test-build ## unit tests and scenarios
	$(SERVERS) $(CARGO) nextest run $(SCOPE) --profile $(PROFILE) $(ARGS)
	$(CARGO) test $(SCOPE) --doc --quiet

test-web: ## types and unit tests of the page
	@.ci/web check
	@.ci/web test

e2e: web test-build ## the page in a browser against the real binaries
	@CHATBOX_BIN=$(TARGET_DIR)/debug/chatbox .ci/web e2e

# The properties themselves run in `make test`, over the corpus and mutations of it. This is the search for more: guided by
# coverage, and instrumented, which stable does when told that it may. What it finds stays in .cache/fuzz; what breaks a
# property is written to tests/fuzz/artifacts, and belongs into tests/fuzz/corpus once it is mended.
fuzz: ## look for inputs that break a property: T=sse (all) TIME=180 (seconds each) SANITIZER=none
	@$(FETCH) cargo-fuzz
	@cp Cargo.lock tests/fuzz/Cargo.lock # the versions that are shipped; cargo leaves out what is not used
	@for target in $(or $(T),$(notdir $(wildcard tests/fuzz/corpus/*))); do \
	  mkdir -p $(CACHE)/fuzz/$$target; \
	  echo "::: $$target"; \
	  CARGO_TARGET_DIR=$(TARGET_DIR)/fuzz RUSTC_BOOTSTRAP=1 $(CACHE)/bin/cargo-fuzz fuzz run --fuzz-dir tests/fuzz \
	    --sanitizer $(or $(SANITIZER),none) --codegen-units 16 $$target $(CACHE)/fuzz/$$target tests/fuzz/corpus/$$target \
	    -- -max_total_time=$(or $(TIME),180) -max_len=4096 -timeout=10 -rss_limit_mb=1024 -print_final_stats=1; \
	done

# What is measured is what is shipped: the bench is built without the other packages' test features, which the whole
# workspace would bring, and so shares all dependencies with the binaries.
bench: ## speed and memory, each figure beside its reference: ARGS='bridge --json --rounds 9'
	@$(FETCH) mongod
	$(CARGO) build $(SCOPE) --release --bins
	$(CARGO) bench --locked --package chatbox-tests --bench figures -- $(ARGS)

chaos: test-build ## rounds of load and faults, each proven: ROUNDS=n SEED=s ON=single|cluster-1|cluster-3
	@$(FETCH) mongod nats-server
	@exec $(TARGET_DIR)/debug/chaos $(or $(ROUNDS),20) $(or $(SEED),$(shell od -An -N4 -tu4 /dev/urandom)) $(ON)

cover: test-tools web ## line coverage of the whole workspace, at least 80 %
	@$(FETCH) cargo-llvm-cov llvm-tools
	@.ci/cover $(ARGS)

##@ Check

.PHONY: fmt fmt-check lint check doc deny proto-breaking gen-check docker-lint secrets deploy-check ci
fmt: ## format Rust and proto
	$(CARGO) fmt --all
	$(CARGO) fmt --manifest-path tests/fuzz/Cargo.toml
	@$(FETCH) buf
	$(CACHE)/bin/buf format -w proto/proto

fmt-check: ## say what `make fmt` would change
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path tests/fuzz/Cargo.toml --check
	@$(FETCH) buf
	$(CACHE)/bin/buf format -d --exit-code proto/proto

lint: check ## clippy, buf, the page's types
	@$(FETCH) buf
	$(CACHE)/bin/buf lint proto/proto
	$(CARGO) clippy $(SCOPE) --all-targets -- -D warnings

check: ## who imports whom, file length, names, log lines
	@.ci/check --self-test
	@.ci/check

doc: ## build the documentation; a broken link is an error
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc $(SCOPE) --no-deps

deny: ## licences, bans and sources of the dependencies
	@$(FETCH) cargo-deny
	$(CARGO) fetch --locked
	$(CACHE)/bin/cargo-deny --offline --locked --config .cargo/deny.toml check --hide-inclusion-graph licenses bans sources

proto-breaking: ## compare the contract with the last landed one: BASE=ref
	@$(FETCH) buf
	@BUF=$(CACHE)/bin/buf .ci/proto-breaking $(BASE)

gen-check: ## the page's generated types match the contract
	@$(FETCH) buf
	@BUF=$(CACHE)/bin/buf .ci/web gen:check

docker-lint: ## Dockerfiles and deployments: hadolint, pins, health, secrets
	@$(FETCH) hadolint yaml
	$(CACHE)/bin/hadolint --failure-threshold info Dockerfile.core Dockerfile.edge
	@PYTHONPATH=$(CACHE)/py/yaml $(PYTHON) .ci/deployments.py --self-test
	@PYTHONPATH=$(CACHE)/py/yaml $(PYTHON) .ci/deployments.py

secrets: ## look for committed secrets
	@$(FETCH) gitleaks
	@.ci/secrets $(CACHE)/bin/gitleaks

deploy-check: ## refuse to deploy what is missing or still a placeholder
	@$(PYTHON) deployments/check.py

ci: fmt-check lint doc deny proto-breaking gen-check docker-lint secrets test ## all of it

##@ Deploy

.PHONY: docker up down
docker: ## build both images: TAG=chatbox
	docker build -f Dockerfile.core -t $(or $(TAG),chatbox)-core .
	docker build -f Dockerfile.edge -t $(or $(TAG),chatbox)-edge .

up: deploy-check ## start deployments/compose.yaml
	docker compose -f deployments/compose.yaml up --detach --build --wait

down: ## stop it; the data stays in its volume
	docker compose -f deployments/compose.yaml down
