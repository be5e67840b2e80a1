# The two commands: make demo, make test. `make help` lists the rest.
SHELL := bash
BIN   := bin
CACHE := .cache
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# The time of the commit, so that one commit makes one binary: claviger-agent takes an earlier clock for a wrong one.
BUILT ?= $(shell git log -1 --format=%cI 2>/dev/null)
LDFLAGS := -s -w -X main.version=$(VERSION)
TOOL := go tool -modfile=deploy/tools.mod
export CGO_ENABLED := 0

.PHONY: help build demo test test-short race check lint proto vault deb kernel e2e-boot e2e-boot-full e2e-packages bench fuzz mutate clean

help: ## show this
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

build: ## build bin/claviger and bin/claviger-agent
	@mkdir -p $(BIN)
	go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/claviger ./cmd/claviger
	go build -trimpath -tags grpcnotrace -ldflags '$(LDFLAGS) -X main.built=$(BUILT)' -o $(BIN)/claviger-agent ./cmd/claviger-agent

demo: build ## the whole job in a minute: release, denial with its reason, receipt, real evidence
	@deploy/demo.sh

test: vault ## all tests, with a real HashiCorp Vault and a real etcd
	go test -timeout 20m ./...
	cd proto/interop/jwxv2 && go test ./...

test-short: ## tests that need no Vault and no etcd process
	go test -short ./...

race: ## the tests that need no server, under the race detector
	CGO_ENABLED=1 go test -short -race -timeout 20m ./broker/... ./policy/... ./internal/...

check: lint test ## what CI runs

lint: $(CACHE)/bin/buf ## format, vet, staticcheck, proto lint and breaking changes
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet ./...
	$(TOOL) staticcheck ./...
	go run -modfile=deploy/tools.mod deploy/tools/protoimage/main.go > $(CACHE)/claviger.binpb
	$(CACHE)/bin/buf lint $(CACHE)/claviger.binpb --config buf.yaml --path claviger/v1
	$(CACHE)/bin/buf breaking $(CACHE)/claviger.binpb --config buf.yaml --against proto/claviger/v1/baseline.binpb --path claviger/v1

proto: $(CACHE)/bin/buf ## generate Go from proto/
	@mkdir -p $(CACHE)
	go run -modfile=deploy/tools.mod deploy/tools/protoimage/main.go > $(CACHE)/claviger.binpb
	$(CACHE)/bin/buf generate $(CACHE)/claviger.binpb --path claviger/v1

$(CACHE)/bin/buf: deploy/tools.mod
	@mkdir -p $(CACHE)/bin
	go build -modfile=deploy/tools.mod -o $@ github.com/bufbuild/buf/cmd/buf

vault: $(CACHE)/bin/plugins/postgresql-database-plugin ## build a real Vault server for the tests, once (about 6 minutes), unless there is one on PATH; and its PostgreSQL plugin
	@command -v vault >/dev/null || $(MAKE) --no-print-directory $(CACHE)/bin/vault

# Always the same flags: others make go compile Vault again. `-tags minimal`: SERVERS.md, no UI, no cloud backends.
$(CACHE)/bin/vault: deploy/tools/vault/go.mod
	@echo "building HashiCorp Vault 1.21.2 for the tests, once; this takes about six minutes"
	@mkdir -p $(CACHE)/bin
	go build -C deploy/tools/vault -p 2 -tags minimal -trimpath -ldflags='-s -w' -o $(CURDIR)/$@ github.com/hashicorp/vault

$(CACHE)/bin/plugins/postgresql-database-plugin: deploy/tools/vault/go.mod
	@mkdir -p $(@D)
	go build -C deploy/tools/vault -p 2 -trimpath -ldflags='-s -w' -o $(CURDIR)/$@ github.com/hashicorp/vault/plugins/database/postgresql/postgresql-database-plugin

deb: build ## make Debian packages in dist/
	@deploy/deb/build.sh $(VERSION)

kernel: ## unpack Debian's cloud kernel for test guests
	@deploy/e2e/kernel.sh $(CURDIR)/$(CACHE)/kernel

e2e-boot: build vault kernel ## boot virtual machines whose disks open only with a key from a broker, and some that must not (3 minutes)
	CLAVIGER_E2E=boot go test -count 1 -timeout 30m -v -run '^(TestBoot|TestAgentCost)$$' ./internal/e2e

e2e-boot-full: deb vault kernel ## the same with unified kernel images, Secure Boot, shim and GRUB, and whole Debians with initramfs-tools and dracut (20 minutes)
	@deploy/e2e/efi.sh $(CURDIR)/$(CACHE)/efi
	@deploy/e2e/debian.sh $(CURDIR)/$(CACHE)/debian/rootfs
	CLAVIGER_E2E=full go test -count 1 -timeout 60m -v ./internal/e2e

e2e-packages: deb ## install, upgrade and purge the packages in a Debian, and build both kinds of initial RAM disk there (3 minutes; needs root and mmdebstrap)
	@deploy/e2e/debian.sh $(CURDIR)/$(CACHE)/debian/rootfs
	@deploy/e2e/packages.sh $(CURDIR)/$(CACHE)/debian/rootfs

bench: ## benchmarks beside the cryptographic floor measured in the same run
	go test -run '^$$' -bench . -benchmem -benchtime 0.5s ./broker/brokertest ./broker/etcd ./broker/seal ./broker/token
	@go run ./internal/bench

FUZZTIME ?= 10s
fuzz: ## run each fuzz target briefly
	@deploy/fuzz.sh $(FUZZTIME)

# MUTATE names packages of internal/mutate/path.txt, or is empty for all; MUTATEFLAGS=-sample=100 tries a part.
MUTATE ?=
MUTATEFLAGS ?=
mutate: ## change the release path in one place at a time, and print what no test noticed and the score (an hour; MUTATE=./broker/seal: seconds)
	nice go run ./internal/mutate -path internal/mutate/path.txt -list internal/mutate/equivalent.txt -procs 2 $(MUTATEFLAGS) $(MUTATE)

clean: ## remove what was built
	rm -rf $(BIN) $(CACHE)
