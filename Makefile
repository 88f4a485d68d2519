# Hearth's targets. `make help` lists them; every target brings along the set-up it needs.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup setup-runtime litellm trial trial-stop lint sanity unit render gateway contract test-fuzz soak browser molecule test bed \
        test-cluster test-servers test-standin test-vm test-vm-node test-vm-arm64 bench bench-gateway docs airgap build resolve-pins lock clean

PATH := $(CURDIR)/.venv/bin:$(PATH)
export PATH
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
RUN := .venv/bin/python tests/run.py

help: ## List the targets, a line each
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 16

setup: ## Bring this machine to where all targets run (twice in a row does nothing)
	@scripts/setup.sh dev

setup-runtime:
	@scripts/setup.sh runtime

litellm: setup ## The real LiteLLM, in an environment of its own (tests and bench bring it themselves)
	@scripts/setup.sh litellm

trial: setup-runtime ## A private chat on this machine: no cluster, no root, no key
	@ansible-playbook site.yml -i inventories/trial

trial-stop: setup-runtime ## Stop the trial (its data stays; trial_delete_data=true deletes it)
	@ansible-playbook playbooks/trial_stop.yml -i inventories/trial $(if $(trial_delete_data),-e trial_delete_data=$(trial_delete_data))

lint: setup ## Linters and type checkers
	@$(RUN) lint

sanity: setup ## ansible-test sanity on what the collection publishes
	@$(RUN) sanity

unit: setup ## Pure functions, modules, documentation
	@$(RUN) unit

render: setup ## Every template against the schemas
	@$(RUN) render

gateway: setup ## The gateway against mock vendors over real HTTP
	@$(RUN) gateway

contract: setup ## The access chain, C1 to C35 of docs/access.md (OAUTH2_PROXY=/path/to/binary: on the real one)
	@$(RUN) contract

test-fuzz: setup ## 100,000 random requests in process and 5,000 over sockets (HEARTH_FUZZ_SEED=… repeats a run)
	@HEARTH_FUZZ=100000 $(RUN) fuzz

soak: setup ## Load for MINUTES (20) with a bound on the memory's slope
	@.venv/bin/python tests/gateway/soak.py --minutes $(or $(MINUTES),20) --report build/reports/soak.json

browser: setup ## The chat page in headless Chromium
	@$(RUN) browser

molecule: setup ## Roles on a systemd host, no cluster (needs root)
	@$(RUN) molecule

test: setup ## Lint, sanity, unit, render, gateway, browser, molecule, README: minutes (needs root)
	@$(RUN) lint sanity unit render gateway contract browser bed molecule readme

bed: setup ## Build the test bed: Kubernetes, hosts, registry (about 10 minutes cold, seconds warm)
	@tests/testbed/bed build all

test-cluster: setup bed ## site.yml on a bare systemd host with a real Kubernetes (needs root)
	@$(RUN) cluster access gateway-cluster faults

test-servers: setup bed ## site.yml on one to four hosts: grown, broken, upgraded; and without internet (root)
	@$(RUN) topology airgap

test-standin: setup bed ## The stand-in for k3s against its contract (needs root)
	@$(RUN) standin standin-servers

test-vm: setup bed ## Modules, sysctl, iSCSI and a real reboot in a QEMU machine (root)
	@$(RUN) vm

test-vm-node: setup bed ## A k3s node that comes back by itself from a reboot, in a QEMU machine (root; by hand)
	@$(RUN) vm-node

test-vm-arm64: setup ## The same without k3s on an emulated arm64 machine (root; by hand, CI has no time for it)
	@scripts/setup.sh arm64
	@$(RUN) vm-arm64

bench: setup ## Bare host to first answer, and a rerun (SERVERS=3)
	@.venv/bin/python tests/bench/run.py --servers $(or $(SERVERS),1)

bench-gateway: setup ## The gateway beside nginx, its bare parts and LiteLLM (ROUNDS=2 ONLY=plain COMPARE=revision)
	@.venv/bin/python tests/bench/gateway/run.py --rounds $(or $(ROUNDS),2) $(if $(ONLY),--only $(ONLY)) $(if $(COMPARE),--compare $(COMPARE))

docs: setup ## Generate docs/variables.md and the contract files
	@.venv/bin/python scripts/generate_docs.py

airgap: setup-runtime ## One folder with all that a host without internet needs (ARCH=amd64 or arm64)
	@.venv/bin/python scripts/airgap.py --arch $(or $(ARCH),amd64)

build: setup-runtime ## The collection archive, in build/
	@mkdir -p build && ansible-galaxy collection build --force --output-path build

resolve-pins: setup-runtime ## Fill unresolved pins from their public sources (add=k3s@VERSION adds one)
	@.venv/bin/python scripts/resolve_pins.py $(if $(add),--add $(add))

lock: setup-runtime ## Write the hash-locked requirements anew
	@scripts/lock.sh

clean: ## Remove what is generated in the tree (not the cache outside it)
	@rm -rf build .mypy_cache .ruff_cache .pytest_cache .venv .collections
