# The two commands are `make demo` and `make test`; `make help` lists the rest.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := default
.PHONY: default help demo test verify fix test-cluster sim exhaustive mutants fuzz soak chaos failover-bench bench cluster example

DEMO := cargo run --quiet --profile demo --package mainstay-examples --bin demo --
DEMO_ARGS ?=
# Not of the environment: a shell may export a NAME of its own.
ifneq ($(origin NAME),command line)
NAME := counter
endif
PART = $(filter-out counter,$(NAME))
SEEDS ?= 200
WHAT ?= shard cluster
SIM := cargo run --quiet --profile sim --package mainstay-cluster-tests --features sim --bin sim --
CASES ?= 20000
SOAK_SECONDS ?= 600
KILLS ?= 50
FAULTS ?= 100
FAILOVER_JSON ?= target/failover.json
ROUNDS ?= 5

default:
	@echo 'make demo     start three nodes, load them, kill one, prove that nothing was lost'
	@echo 'make test     everything that proves it works'
	@echo '              (make help lists the rest)'

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

demo: ## three nodes under load, a kill -9, a restart, a drain, and an audit; DEMO_ARGS="--seed 7"
	@echo '> build     the first time takes 2 to 4 minutes, later seconds'
	@cargo build --quiet --profile demo --package mainstay-examples --bin demo
	@$(DEMO) $(DEMO_ARGS)

test: ## format, lints, documentation, every test; the last line counts them
	@.ci/tests all

verify: ## the gate without the tests: format, lints, documentation, licences; changes nothing
	@.ci/tests verify

fix: ## formats, applies what the lints can mend, writes docs/metrics.md anew
	cargo clippy --workspace --all-targets --features mainstay-cluster-tests/sim --fix --allow-dirty --allow-staged
	MAINSTAY_UPDATE=1 cargo test --quiet --package mainstay-cluster-tests --test it tidy::the_metrics_page
	cargo fmt --all

test-cluster: ## only the tests that start node processes
	@.ci/tests cluster

sim: ## the simulators: SEEDS=200 runs that many, SEED=7 repeats one, WHAT=shard or cluster
	for what in $(WHAT); do $(SIM) $$what $(if $(SEED),--seed $(SEED),--seeds $(SEEDS)) $(if $(STORY),--story $(STORY)) || exit 1; done

exhaustive: ## every state of small clusters: promotion, fencing, changes of the set
	$(SIM) exhaustive

mutants: ## plants every fault of replication, and says who finds it: SEEDS=200
	$(SIM) mutants --seeds $(SEEDS)

fuzz: ## property tests with many more cases: CASES=20000
	PROPTEST_CASES=$(CASES) cargo test --release --package mainstay-protocol --package mainstay

soak: ## ten minutes with a stalled entity, a blocking handler and a client that overdrives
	cargo build --quiet --profile demo --package mainstay-cluster-tests --bins
	cargo run --quiet --profile demo --package mainstay-cluster-tests --bin soak -- --seconds $(SOAK_SECONDS)

chaos: ## clients, and nodes that are killed, frozen and wiped; then a check: KILLS=50, SEED=7
	cargo build --quiet --profile demo --package mainstay-cluster-tests --bins
	cargo run --quiet --profile demo --package mainstay-cluster-tests --bin chaos -- --faults $(KILLS) $(if $(SEED),--seed $(SEED))

failover-bench: ## from a fault to the first acknowledged write, FAULTS=100 times; FAILOVER_JSON=target/failover.json
	cargo build --quiet --profile demo --package mainstay-cluster-tests --bins
	cargo run --quiet --profile demo --package mainstay-cluster-tests --bin failover -- --faults $(FAULTS) --json $(FAILOVER_JSON)

bench: ## the benchmarks of docs/performance.md: NAME=local-ask runs one part, ROUNDS=5
	cargo run --quiet --profile demo --package mainstay-benches --bin bench -- $(PART) --rounds $(ROUNDS)

cluster: ## three nodes with the demo's entities, until Ctrl-C
	@cargo build --quiet --profile demo --package mainstay-examples --bin demo
	@$(DEMO) --hold

example: ## one example as a single node: NAME=counter|bank|devices|chat
	cargo run --package mainstay-examples --bin $(NAME) -- run --dev
