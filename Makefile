# Every target that a person or CI needs. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules

STEP      := bash tools/step.sh
TOOL      := go tool -modfile=tools/go.mod
DATA      ?= petrel-data
ARGS      ?=
FUZZTIME  ?= 20s
SIMTIME   ?= 60s
FAULTS    ?= 300
JOBS      ?= 50000
DURATION  ?= 0s
SEED      ?=
SEEDS     ?= 2000
BENCH     ?= .
COUNT     ?= 10
BASE      ?=
# Test binaries of all packages at once; nothing takes longer than this without being stuck.
GOTIMEOUT ?= 25m
STARTED   := $(shell date +%s)

# The parts of the tree that are there. A step exists when its folder does; what is run, and
# what is not there yet, is said by `make test` before it begins.
SDK  := $(wildcard sdk/js/package.json)
WEB  := $(wildcard web/package.json)
CONF := $(wildcard conformance/package.json)
E2E  := $(and $(WEB),$(shell grep -s '"e2e"' web/package.json))
CMD  := $(wildcard cmd/petrel/main.go)
STEPS := test-go $(if $(SDK),test-sdk) $(if $(WEB),test-web) $(if $(E2E),test-browser) $(if $(CONF),test-conformance)
ABSENT := $(if $(SDK),,sdk/js/package.json) $(if $(WEB),,web/package.json) $(if $(E2E),,the script e2e of web/package.json)

##@ Use

.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} \
		/^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo

.PHONY: run
run: ## start a demo server with its data in ./petrel-data (DATA=… ARGS=…) and say what to open
	@go build -o bin/petrel ./cmd/petrel
	@bin/petrel serve --demo --data $(DATA) $(ARGS) || test $$? -eq 130

.PHONY: build
build: ## build bin/petrel
	go build -trimpath -o bin/petrel ./cmd/petrel

##@ Test

.PHONY: check
check: check-lint check-arch check-short ## under a minute: format, vet, linters, architecture test, short tests

.PHONY: check-lint check-arch check-short
check-lint:
	@$(STEP) 'format, vet and linters' $(TOOL) golangci-lint run ./...
check-arch:
	@$(STEP) 'architecture test' go test -short ./internal
check-short:
	@$(STEP) 'short tests' go test -short -timeout 15m ./...

.PHONY: fmt
fmt: ## put every Go file into the house's format
	$(TOOL) golangci-lint fmt ./...

.PHONY: test
test: say-steps $(STEPS) ## everything: Go, SDK, web page, browser, Pusher clients; up to 15 minutes; installs Chromium when absent
	@took=$$(($$(date +%s) - $(STARTED))); \
	printf '\nmake test: %d steps passed in %d min %d s: %s\n' $(words $(STEPS)) $$((took / 60)) $$((took % 60)) '$(strip $(STEPS))'

.PHONY: say-steps
say-steps:
	@echo 'make test runs: $(strip $(STEPS))'
	@$(if $(strip $(ABSENT)),echo 'not in the tree yet: $(strip $(ABSENT))',true)
	@echo 'shared data: $(if $(REQUIRE_DATA),required,used where it is found; REQUIRE_DATA=1 fails without it)'

.PHONY: test-go test-sdk test-web test-browser
test-go: ## the Go tests alone
	@$(STEP) 'strace, for the loss of power' bash tools/need.sh strace strace
	@$(STEP) 'go test ./...' go test -timeout $(GOTIMEOUT) ./...
	@$(STEP) 'it builds for macOS' env GOOS=darwin go vet ./...
	@$(STEP) 'it builds for Windows' env GOOS=windows go build -o /dev/null ./cmd/petrel
test-sdk: ## the SDK's tests alone
	@$(STEP) 'sdk/js: npm ci' bash tools/npm-ci.sh sdk/js
	@$(STEP) 'sdk/js: npm test' npm --prefix sdk/js test
test-web: ## the web page's checks, and that web/dist is what its sources make
	@$(if $(SDK),$(STEP) 'sdk/js: npm ci' bash tools/npm-ci.sh sdk/js)
	@$(STEP) 'web: npm ci' bash tools/npm-ci.sh web
	@$(STEP) 'web: npm run check' npm --prefix web run check
	@$(STEP) 'web: dist is up to date' bash tools/web-dist.sh
test-browser: ## two browsers chat: the page in Debian's Chromium against a real server
	@$(STEP) 'web: npm ci' bash tools/npm-ci.sh web
	@$(STEP) 'bin/petrel' $(MAKE) --no-print-directory build
	@$(STEP) 'Chromium' bash tools/need-chromium.sh
	@$(STEP) 'web: npm run e2e' env CHROMIUM="$$(bash tools/need-chromium.sh)" PETREL_BIN="$(CURDIR)/bin/petrel" npm --prefix web run e2e

.PHONY: test-conformance
test-conformance: ## the real Pusher clients against bin/petrel, in Node and Chromium, on one node and on three
	@$(STEP) 'openssl, for the trigger by hand' bash tools/need.sh openssl openssl
	@$(STEP) 'conformance: npm ci' bash tools/npm-ci.sh conformance
	@$(STEP) 'bin/petrel' $(MAKE) --no-print-directory build
	@$(STEP) 'Chromium' bash tools/need-chromium.sh
	@$(STEP) 'conformance: npm test' env CHROMIUM="$$(bash tools/need-chromium.sh)" PETREL_BIN="$(CURDIR)/bin/petrel" npm --prefix conformance test

.PHONY: race
race: ## the Go tests under the race detector (needs a C compiler)
	CGO_ENABLED=1 go test -race -timeout 30m ./...

.PHONY: sim
sim: ## seeded simulations (TestSim…) for SIMTIME each; a failure prints its seed (PETREL_SIM_SEED=…)
	PETREL_SIM_TIME=$(SIMTIME) go test -count=1 -timeout 60m -run '^TestSim' ./internal/...

.PHONY: torture
torture: ## SEEDS=2000 of the simulation, then FAULTS=300 in a cell of three under load, judged (DURATION=0 SEED=…); needs root and /dev/net/tun
	@$(STEP) '$(SEEDS) seeds of the simulation' env PETREL_SIM_SEEDS=$(SEEDS) go test -count=1 -timeout 24h -run '^TestSim$$' ./internal/petreltest
	@$(STEP) 'a cell under faults' env PETREL_TORTURE=1 PETREL_TORTURE_FAULTS=$(FAULTS) PETREL_TORTURE_DURATION=$(DURATION) PETREL_TORTURE_SEED=$(SEED) \
		go test -count=1 -v -timeout 24h -run '^TestTorture$$' ./internal/petreltest

.PHONY: torture-jobs
torture-jobs: ## JOBS=50000 in a cell of three, against a receiver that misbehaves, while ten leaders are killed and a disk is full (SEED=…); needs root and /dev/net/tun
	@$(STEP) '$(JOBS) jobs under faults' env PETREL_JOB_TORTURE=$(JOBS) PETREL_TORTURE_SEED=$(SEED) \
		go test -count=1 -v -timeout 2h -run '^TestJobTorture$$' ./internal/petreltest

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME each
	@bash tools/fuzz.sh $(FUZZTIME)

##@ Measure

.PHONY: bench
bench: ## the Go benchmarks (BENCH=regexp)
	go test -run '^$$' -bench '$(BENCH)' -benchmem -timeout 60m ./...

.PHONY: bench-compare
bench-compare: ## benchmarks of HEAD against BASE=commit, in alternation COUNT times, judged by benchstat
	@bash tools/bench-compare.sh '$(BASE)' '$(BENCH)' '$(COUNT)'

.PHONY: bench-peers
bench-peers: ## Petrel beside its peers and a bare server (ARGS='-rounds 7 -plots docs/img'); see go run ./bench/peers -h
	@$(STEP) 'peers' bash bench/peers/install.sh nchan soketi || echo 'whoever is absent does not take part'
	go run ./bench/peers $(ARGS)

.PHONY: soak
soak: ## 10,000 connections, good and bad ones, for DURATION (10 minutes), judged (ARGS='-seed 1'); see go run ./bench/soak -h
	go run ./bench/soak $(if $(filter-out 0s,$(DURATION)),-for $(DURATION)) $(ARGS)

##@ Generate

.PHONY: ui
ui: ## rebuild web/dist, which is committed
	@bash tools/npm-ci.sh web
	npm --prefix web run build

.PHONY: gen
gen: ## rewrite what is generated and committed
	go generate ./...
	go test ./internal -run '^TestDependencies$$' -count=1 -update
