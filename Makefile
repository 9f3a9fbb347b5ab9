# Everything a developer types. Tools are pinned in tools/go.mod and built by Go; nothing else is needed.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
TOOL := go tool -modfile=tools/go.mod
# What `revokd version` says; without git the Go command's own notes.
STAMP = -X main.version=$(shell git describe --tags --always --dirty 2>/dev/null)

.PHONY: help
help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "%-12s %s\n", $$1, $$2}'

.PHONY: build
build: ## bin/revokd, static
	CGO_ENABLED=0 go build -trimpath -ldflags "$(STAMP)" -o bin/revokd ./cmd/revokd

.PHONY: image
image: build ## the image revokd from bin/revokd, nothing pulled
	docker build --target prebuilt -t revokd .

.PHONY: snapshot
snapshot: ## a release on this machine, without publishing; goreleaser and syft
	goreleaser check
	goreleaser release --snapshot --clean --skip=publish,sign

.PHONY: test
test: ## all tests
	go test ./...

.PHONY: race
race: ## all tests under the race detector
	go test -race ./...

.PHONY: check
check: ## format, vet, staticcheck
	@unformatted="$$($(TOOL) gofumpt -l . | grep -v '^proto/' || true)"; if [ -n "$$unformatted" ]; then echo "not gofumpt-ed:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	go vet -tags faults ./...
	go vet -tags nextversion ./...
	$(TOOL) staticcheck ./...

.PHONY: fuzz
fuzz: ## every fuzz target, FACTOR times as long as in CI (default 10)
	.ci/fuzz $${FACTOR:-10}

.PHONY: crash
crash: ## kill -9 loop on the real process, REVOKD_CRASH_ROUNDS rounds (default 300)
	REVOKD_CRASH_ROUNDS=$${REVOKD_CRASH_ROUNDS:-300} go test -count=1 -timeout 20m -run 'TestCrashLoop' -v ./internal/e2e

.PHONY: crashes
crashes: ## every crash of recorded histories of the journal, FACTOR times as many as in CI (default 10)
	REVOKD_CRASH_FACTOR=$${FACTOR:-10} go test -count=1 -timeout 60m -run 'TestCrashes' -v ./journal

.PHONY: partitions
partitions: ## a cluster in network namespaces: cuts and loss, REVOKD_PARTITION_SECONDS each (default 60); root, iproute2, nftables
	REVOKD_PARTITION_SECONDS=$${REVOKD_PARTITION_SECONDS:-60} go test -count=1 -timeout 20m -run 'TestPartition|TestStrangers' -v ./internal/e2e

.PHONY: figures
figures: ## five fsyncing processes: 10 000 revocations a second for a minute until all have them, and a million in one stream with single ones beside it
	REVOKD_FIGURES_RATE=10000 REVOKD_FIGURES_SECONDS=60 REVOKD_FIGURES_BULK=1000000 go test -count=1 -timeout 20m -run '^Test(Propagation|BulkBesideSingles)$$' -v ./internal/e2e

.PHONY: hostile
hostile: ## every port attacked while others use it
	go test -count=1 -timeout 5m -run '^TestHostile$$' -v ./internal/e2e

.PHONY: load
load: ## a burst, a crowd of REVOKD_LOAD subscribers (default 100; each needs 3 MiB in the test), slow ones, a reconnect storm, logouts, while others are served
	go test -count=1 -timeout 20m -run '^TestLoad$$' -v ./internal/e2e

.PHONY: compose
compose: ## the cluster of docker-compose.yml, started and hurt; a Docker Engine
	go test -count=1 -timeout 8m -run '^TestCompose$$' -v ./internal/e2e

.PHONY: failover
failover: ## kill -9 of the node that a client uses, REVOKD_FAILOVER_ROUNDS times (default 100), and a thousand clients that lose theirs
	REVOKD_FAILOVER_ROUNDS=$${REVOKD_FAILOVER_ROUNDS:-100} REVOKD_CROWD=1000 go test -count=1 -timeout 60m -run 'TestClient(Failover|Crowd)' -v ./internal/e2e

.PHONY: examples
examples: ## the examples, a module of their own, with their tests
	go vet -C examples ./... && go test -C examples -count=1 ./...

.PHONY: bench
bench: ## the full set beside Redis, memcached, NATS, PostgreSQL and others: about 25 minutes on an idle machine; see bench/README.md
	bench/deps
	go run -C bench . $(ARGS)

.PHONY: bench-quick
bench-quick: ## the same with small sizes, in two minutes: shows that it works
	bench/deps
	go run -C bench . -quick

.PHONY: bench-go
bench-go: ## Go benchmarks of the packages, COUNT times (default 6), in the format of benchstat
	go test -run '^$$' -bench . -benchmem -count $${COUNT:-6} -timeout 120m ./revocation ./ttlstore ./bloom ./journal ./token ./node ./client

.PHONY: readme-figures
readme-figures: ## the figures in README.md, from the latest of bench/results
	go run -C bench . -readme

.PHONY: generate
generate: ## the code that is generated from proto/
	go generate ./proto/...

.PHONY: sim
sim: ## simulated clusters: SEEDS seeds (default 3000) of 3 to 9 nodes, from SEED on
	go run ./cluster/replication/internal/simrun -seed $${SEED:-1} -seeds $${SEEDS:-3000}
	go run ./cluster/replication/internal/simrun -rogue -seed $${SEED:-1} -seeds $$(($${SEEDS:-3000} / 4))
	go run ./cluster/replication/internal/simrun -seed $${SEED:-1} -spread 1000

.PHONY: nemesis
nemesis: ## faults against a cluster of hosts, judged: REVOKD_NEMESIS_ROUNDS rounds (default 12); root, iproute2, nftables
	REVOKD_NEMESIS_ROUNDS=$${REVOKD_NEMESIS_ROUNDS:-12} go test -count=1 -timeout 12h -run '^TestNemesis$$' -v ./internal/e2e

.PHONY: mutants
mutants: ## the tests against known bugs, one after the other
	go run ./internal/mutants

.PHONY: nightly
nightly: ## the fault programme of docs/reliability.md, 2 to 4 hours; FRACTION divides its counts
	.ci/reliability nightly $${FRACTION:-1}

.PHONY: release-check
release-check: ## ten nights in one; FRACTION divides its counts
	.ci/reliability release $${FRACTION:-1}
