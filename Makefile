# Berth. "make help" lists the targets; packaging/packages.txt lists what they install.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Looked up when first used, so that "make help" needs nothing.
GO = $(eval GO := $$(shell packaging/scripts/find-go))$(GO)
# Agents tell clusters their version, which has to be x.y.z; the commit goes beside it.
VERSION := $(shell cat VERSION)
HASH = $(eval HASH := $$(shell git rev-parse --short=8 HEAD 2>/dev/null || echo unknown))$(HASH)

# Where "make build" puts the programs.
BIN ?= bin

# containerd is built without what Berth does not use of it, and gRPC without its pages of
# traces, whose templates would keep every method of every type in the programs.
TAGS := no_cri no_btrfs no_zfs no_devmapper no_tracing grpcnotrace
CONTAINERD = $(shell awk '$$1 == "github.com/containerd/containerd/v2" {print substr($$2, 2); exit}' go.mod)
GOBUILD = CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -tags '$(TAGS)' -ldflags '-s -w -X main.version=$(VERSION) -X main.hash=$(HASH) -X github.com/containerd/containerd/v2/version.Version=$(CONTAINERD)'
PROGRAMS := ./cmd/... ./cni-plugins/... github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2

# Packages whose tests use a real host (as root) rather than only themselves.
GOTEST = $(GO) test -tags '$(TAGS)' -timeout 20m
UNIT = $$($(GO) list -tags '$(TAGS)' ./... | grep -v '/integ')
FUZZTIME ?= 20000x

.PHONY: help deps build programs packages up down dev test vm-test unit integ lint fuzz bench churn dist clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## install what is missing to build and run (Debian packages, Go)
	@packaging/scripts/install-packages run
	@packaging/scripts/find-go >/dev/null

build: deps programs ## build the programs into bin/

# For another processor with GOARCH.
programs:
	@mkdir -p $(BIN)
	@$(GOBUILD) -o $(BIN)/ $(PROGRAMS)
	@cmp -s $(BIN)/my-image $(BIN)/.packed || { GOARCH= $(GO) run -tags '$(TAGS)' ./integ/testimage/pack $(BIN)/my-image $(BIN)/my-image.tar my-image:latest && cp $(BIN)/my-image $(BIN)/.packed; }

up: build ## start everything on this host and run the sample task
	@bin/berth up

down: ## stop everything; nothing but the data in /var/lib/berth is left
	@if [ -x bin/berth ]; then bin/berth down; else echo "Nothing was built here, so nothing is running from here."; fi

dev: build ## the same as "make up" in the foreground, with all logs; Ctrl-C stops it
	@bin/berth up --foreground

test: ## every test, as root; installs what the tests need
	@packaging/scripts/install-packages run test
	@$(MAKE) build lint
	@mkdir -p .cache && $(GO) build -o .cache/world ./integ/world/cmd/world && .cache/world take .cache/before.json
	@$(MAKE) unit integ
	@.cache/world compare .cache/before.json

unit: ## unit tests with the race detector
	@CGO_ENABLED=1 $(GOTEST) -race $(UNIT)

integ: ## integration tests, as root, against real containerd, the aws CLI and boto3
	@$(GOTEST) -count=1 -p 1 $$($(GO) list -tags '$(TAGS)' ./integ/... | grep -v /integ/vm)

vm-test: ## tests in a virtual machine: cgroup v2, NFS, quotas, hardware that comes and goes
	@packaging/scripts/install-packages run test vm
	@$(GOTEST) -count=1 -v ./integ/vm

lint: ## go vet and gofmt; golangci-lint as well where it is installed
	@$(GO) vet -tags '$(TAGS)' ./...
	@unformatted=$$(git ls-files -co --exclude-standard '*.go' | xargs "$$(dirname "$$(realpath $(GO))")/gofmt" -l); \
	  if [ -n "$$unformatted" ]; then echo "Not formatted; run gofmt -w on:" $$unformatted; exit 1; fi
	@if command -v golangci-lint >/dev/null; then golangci-lint run; fi

fuzz: deps ## every fuzz target for FUZZTIME (a number of executions, or a time)
	@grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n 1 dirname | sort -u | while read -r dir; do \
	  for target in $$(grep -ho '^func Fuzz[A-Za-z0-9_]*' $$dir/*_test.go | cut -c6-); do \
	    $(GO) test -tags '$(TAGS)' -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) "$$dir"; \
	  done; done

bench: build ## the figures of Berth beside those of the bare containerd client
	@packaging/scripts/install-packages run test
	@$(GO) test -tags '$(TAGS)' -run '^$$' -bench . -benchtime 1x -timeout 30m ./integ/bench/... ./cluster/sched/...
	@BERTH_LOG_SCALE=full $(GO) test -tags '$(TAGS)' -count=1 -v -timeout 20m -run 'Much|FullSpeed|Thousand|VeryLong|OneShipper' ./integ/logs

churn: build ## 500 tasks of each network mode while agent, containerd and plugins are killed
	@packaging/scripts/install-packages run test
	@BERTH_CHURN=500 $(GO) test -tags '$(TAGS)' -count=1 -v -timeout 60m -run TestNothingIsLeft ./integ/churn

dist: build ## one archive of the programs in dist/
	@mkdir -p dist && tar --sort=name --owner=0 --group=0 --numeric-owner -czf dist/berth-$(VERSION)-linux-$$($(GO) env GOARCH).tar.gz --exclude=.packed LICENSE README.md CHANGELOG.md SECURITY.md docs examples $(BIN)
	@ls -l dist

packages: deps ## deb and rpm packages for amd64 and arm64 in dist/packages/
	@rm -rf dist/packages && packaging/scripts/build-packages dist/packages
	@cp packaging/scripts/install.sh dist/packages/ && ls -l dist/packages

clean: ## remove what was built
	@rm -rf bin dist .cache
