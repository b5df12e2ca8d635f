# make help tells what there is.
SHELL := /bin/sh
export PATH := $(CURDIR)/node_modules/.bin:$(PATH)
.DEFAULT_GOAL := help
.PHONY: help setup build demo demo-down test unit system e2e faults bench lint format clean

help: ## this text
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: ## install host packages and npm packages (quick when all is there)
	@scripts/setup.sh

build: setup ## compile and bundle
	@npm run --silent build

demo: build ## three virtual servers from nothing: files, printing, web; leaves them running
	@bin/wadah demo up

demo-down: build ## end the demo and remove everything of it
	@bin/wadah demo down

test: build ## every test: lint, rooms, types, unit, system, end to end
	@node scripts/test.ts

unit: build ## the quick tests only
	@npm run --silent test:unit

system: build ## tests against real QEMU, networks and packages
	@npm run --silent test:system

e2e: build ## tests of the whole daemon
	@npm run --silent test:e2e

faults: build ## every kill of a daemon, ten thousand random requests, and the whole kill matrix of moves (hours; goes on where it was: .cache/faults.json)
	@WADAH_ALL_FAULTS=1 vitest run --project e2e tests/faults/kill.test.ts tests/faults/fuzz.test.ts
	@mkdir -p .cache && node tests/faults/moves/run.ts --resume .cache/faults.json

bench: build ## measure what docs/performance.md promises
	@node bench/run.ts

lint: setup ## oxlint, the rooms, the format
	@npm run --silent lint && npm run --silent format:check

format: setup ## put every file into the one format
	@npm run --silent format

clean: ## remove what was built and cached
	@rm -rf .cache packages/*/dist node_modules
