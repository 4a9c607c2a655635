# Everything a person or CI runs. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X bmc/internal/version.Version=$(VERSION) -X bmc/internal/version.Commit=$(COMMIT)
GOFLAGS := -trimpath -buildvcs=false
BINARIES := bmc bmc-controlplane bmc-agent bmc-ramdisk bmc-lab
BUILD := build
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build every binary into bin/
	@mkdir -p bin
	@for b in $(BINARIES); do CGO_ENABLED=0 go build $(GOFLAGS) -ldflags '$(LDFLAGS)' -o bin/$$b ./cmd/$$b; done

# The daemons that a lab starts, with the places where a test may stop them (internal/failpoint).
.PHONY: build-failpoints
build-failpoints: ## build the daemons with failpoints into bin/failpoints, for bmc-lab up --bin
	@mkdir -p bin/failpoints
	@for b in bmc-controlplane bmc-agent; do CGO_ENABLED=0 go build $(GOFLAGS) -tags failpoints -ldflags '$(LDFLAGS)' \
		-o bin/failpoints/$$b ./cmd/$$b; done

.PHONY: deps-test
deps-test:
	@scripts/need gcc:gcc /usr/include/stdlib.h:libc6-dev

.PHONY: test
test: deps-test ## unit and integration tests with the race detector
	go vet ./...
	go test -race -timeout 14m ./...

.PHONY: race
race: deps-test ## the tests again, three times, in random order
	go test -race -count=3 -shuffle=on -timeout 45m ./...

.PHONY: lint
lint: $(BUILD)/tools/golangci-lint check-proto check-arrows ## linters, the import arrows, generated code
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo 'not gofmt-ed:'; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(BUILD)/tools/golangci-lint run ./...

$(BUILD)/tools/golangci-lint: tools/lint/go.mod tools/lint/go.sum
	@mkdir -p $(@D)
	@echo 'building golangci-lint (once; some minutes)'
	go build -C tools/lint -o ../../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

.PHONY: check-arrows
check-arrows: ## no daemon, Raft or S3 leaks into cmd/bmc, not even transitively
	@scripts/check-arrows

PROTO_DIRS := api/bmc/v1 api/agent/v1 fsm/logpb

.PHONY: proto
proto: ## generate Go from the .proto files
	@scripts/need protoc:protobuf-compiler /usr/include/google/protobuf/timestamp.proto:libprotobuf-dev
	@mkdir -p $(BUILD)/tools
	@go build -C tools/protoc -o ../../$(BUILD)/tools/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
	@for d in $(PROTO_DIRS); do PATH="$(CURDIR)/$(BUILD)/tools:$$PATH" protoc -I $$d \
		--go_out=$$d --go_opt=paths=source_relative \
		--go-grpc_out=$$d --go-grpc_opt=paths=source_relative $$d/*.proto; done

.PHONY: check-proto
check-proto: proto ## the committed generated code is what the .proto files give
	@git diff --exit-code --stat -- $(PROTO_DIRS) || { echo 'generated code differs: run make proto and commit'; exit 1; }

.PHONY: diagram
diagram: ## draw docs/lifecycle.md from the transition table
	go run ./fsm/lifecycle/diagram > docs/lifecycle.md

.PHONY: deps-lab
deps-lab:
	@scripts/need qemu-system-x86_64:qemu-system-x86 /usr/share/seabios/bios-256k.bin:seabios \
		/usr/lib/ipxe/qemu/efi-virtio.rom:ipxe-qemu /usr/share/OVMF/OVMF_CODE_4M.fd:ovmf \
		ip:iproute2 ssh:openssh-client

# The program busybox is in the package busybox, too: with libraries, no use here.
.PHONY: deps-image
deps-image:
	@scripts/need mke2fs:e2fsprogs mtools:mtools mkfs.vfat:dosfstools sfdisk:fdisk \
		/usr/lib/grub/i386-pc/boot.img:grub-pc-bin /usr/lib/grub/x86_64-efi/moddep.lst:grub-efi-amd64-bin \
		grub-mkimage:grub-common cpio:cpio zstd:zstd python3:python3 dropbear:dropbear-bin \
		/var/lib/dpkg/info/busybox-static.list:busybox-static

.PHONY: kernel
kernel: ## build/kernel: a small kernel for the ramdisk, of Debian's source (cached; ten minutes); make ramdisk takes it
	@scripts/need gcc:gcc /usr/include/stdlib.h:libc6-dev flex:flex bison:bison bc:bc /usr/include/libelf.h:libelf-dev zstd:zstd \
		xz:xz-utils perl:perl
	images/ramdisk/kernel/build.sh $(BUILD)/kernel

# Whoever makes both packs that kernel: under make -j, too.
ifneq ($(filter kernel bench bench-arrive,$(MAKECMDGOALS)),)
ramdisk: | kernel
endif

.PHONY: ramdisk
ramdisk: ## build/ramdisk: Debian's kernel, or build/kernel if that is there, and our init (cached by content)
	go run ./images/ramdisk -own $(BUILD)/kernel -out $(BUILD)/ramdisk -version $(VERSION) -commit $(COMMIT)

.PHONY: image
image: deps-image ## build/images/debian12.img: a small Debian 12 that boots by BIOS and UEFI
	@scripts/need mmdebstrap:mmdebstrap systemctl:systemd
	images/debian12/build.sh $(BUILD)/images

.PHONY: tiny
tiny: deps-image ## build/images/tiny.img: the smallest image that proves a deployment
	images/tiny/build.sh $(BUILD)/images

.PHONY: smoke
smoke: build deps-lab ramdisk tiny ## one BIOS machine deployed with a tiny image, logged into, destroyed
	@go build -o $(BUILD)/journey ./e2e/journey
	$(BUILD)/journey -servers 1 -firmware bios -nodes 1 -disk 1GiB -image $(BUILD)/images/tiny.img

.PHONY: demo
demo: build deps-lab ramdisk image ## three nodes, one rack, a BIOS and a UEFI server: the whole life of both
	@go build -o $(BUILD)/journey ./e2e/journey
	$(BUILD)/journey -servers 2 -firmware bios,uefi -nodes 3 -warm -image $(BUILD)/images/debian12.img

.PHONY: dev
dev: build deps-lab ramdisk tiny ## leave the lab up, and print what to type next
	scripts/dev

.PHONY: e2e
e2e: build deps-lab ramdisk tiny image minio ## the same with ipmi_sim, MinIO, real DHCP, TFTP and HTTP clients, and faults
	@scripts/need ipmitool:ipmitool ipmi_sim:openipmi dhclient:isc-dhcp-client dhcrelay:isc-dhcp-relay tftp:tftp-hpa curl:curl \
		udhcpc:udhcpc redfishtool:redfishtool
	@echo '== protocols against real peers: udhcpc, dhclient, dhcrelay, tftp, curl, ipmitool, ipmi_sim, redfishtool, versitygw, MinIO'
	BMC_TEST_RAMDISK=$(CURDIR)/$(BUILD)/ramdisk PATH="$(CURDIR)/$(BUILD):$$PATH" go test -count=1 -timeout 20m -tags e2e \
		./netboot/... ./agent/oob/... ./imagestore/... ./lab/... ./images/ramdisk/...
	@echo '== labs with real boots'
	go test -count=1 -timeout 60m -v -tags e2e ./e2e/...

# Arguments of the programs below, e.g. make e2e-kill KILL='-only create/write-image/agent/before'
KILL ?=
CHAOS ?=
.PHONY: e2e-kill
e2e-kill: build build-failpoints deps-lab ramdisk tiny ## kill -9 of leader, agent and both at every journalled step; 50 agents paused
	@go build -o $(BUILD)/kill ./e2e/kill
	@$(BUILD)/kill $(KILL)

.PHONY: chaos
chaos: build ramdisk tiny ## 200 light servers on three racks created and destroyed at once under faults, then all checks
	@go build -o $(BUILD)/storm ./chaos/storm
	@$(BUILD)/storm $(CHAOS)

.PHONY: chaos-quick
chaos-quick: build ramdisk tiny ## the same, smaller: about three minutes
	@go build -o $(BUILD)/storm ./chaos/storm
	@$(BUILD)/storm -racks 2 -light 16 -clients 4 -duration 120s -settle 5m $(CHAOS)

.PHONY: mutants
mutants: ## seeded mutants, each of which its invariant must catch
	@go run ./chaos/mutants

.PHONY: minio
minio: ## build/minio: a real MinIO server, only ever a separate process
	@test -x $(BUILD)/minio || { echo 'building MinIO (once; some minutes)'; mkdir -p $(BUILD); \
		go build -C tools/minio -o ../../$(BUILD)/minio github.com/minio/minio; }

.PHONY: bench
bench: build kernel ramdisk tiny etcd ## every measurement below in a short form (40 minutes, and the first time what is built for it; BENCH_FULL=1: hours), and one table
	@go build -o $(BUILD)/bench-all ./bench/all
	@$(BUILD)/bench-all $(BENCH)

.PHONY: bench-go
bench-go: ## Go benchmarks of the hot paths
	go test -run '^$$' -bench . -benchmem ./fsm/... ./netboot/... ./internal/manifest/...

.PHONY: etcd
etcd: ## build/etcd: a real etcd server, to measure beside
	@test -x $(BUILD)/etcd || { echo 'building etcd (once; some minutes)'; mkdir -p $(BUILD); \
		go build -C tools/etcd -o ../../$(BUILD)/etcd go.etcd.io/etcd/server/v3; }

# Arguments of the measurements, e.g. make bench-failover BENCH='-kills 10 -budget 10m'
BENCH ?=
.PHONY: bench-failover
bench-failover: build etcd ## 100 leader kills under load: the gap in acknowledged writes, beside etcd's
	@go build -o $(BUILD)/failover ./bench/failover
	@$(BUILD)/failover $(BENCH)

.PHONY: bench-takeover
bench-takeover: build ramdisk tiny ## 100 kills of agents that hold a lease, ten racks side by side: until another has it
	@go build -o $(BUILD)/kill ./e2e/kill
	@$(BUILD)/kill -takeovers 100 $(BENCH)

.PHONY: bench-commit
bench-commit: build etcd ## committed writes a second and their latency, beside etcd's; both log stores
	@go build -o $(BUILD)/plane ./bench/plane
	@$(BUILD)/plane -only commit $(BENCH)

.PHONY: bench-reads
bench-reads: build etcd ## linearizable reads, the list of 40,000 servers, one of them; beside etcd and PostgreSQL
	@scripts/need /usr/share/doc/postgresql/copyright:postgresql || echo 'measured without PostgreSQL'
	@go build -o $(BUILD)/plane ./bench/plane
	@$(BUILD)/plane -only reads,list $(BENCH)

.PHONY: bench-growth
bench-growth: build ## memory, writes, reads and the list with 100 to 40,000 servers
	@go build -o $(BUILD)/plane ./bench/plane
	@$(BUILD)/plane -only growth $(BENCH)

.PHONY: bench-scale
bench-scale: build ## 40,000 servers, 100,000 log entries: snapshot, restore, restart, memory
	@go build -o $(BUILD)/scale ./bench/scale
	@$(BUILD)/scale $(BENCH)

.PHONY: bench-netboot
bench-netboot: ## DHCP, TFTP and HTTP beside Kea, dnsmasq, atftpd and nginx, and beside a bare echo
	@scripts/need ip:iproute2 nsenter:util-linux
	@scripts/need kea-dhcp4:kea-dhcp4-server dnsmasq:dnsmasq-base atftpd:atftpd nginx:nginx-light || echo 'measured without what is missing'
	@go build -o $(BUILD)/netboot ./bench/netboot
	@$(BUILD)/netboot $(BENCH)

.PHONY: bench-image
bench-image: ## an image from the agent onto a disk: fetch, decode, write, read back; beside the disk alone and curl | zstd | dd
	@test -f $(BUILD)/images/debian12.img || $(MAKE) image
	@scripts/need fio:fio zstd:zstd curl:curl || echo 'measured without what is missing'
	@go build -o $(BUILD)/image ./bench/image
	@$(BUILD)/image $(BENCH)

.PHONY: bench-oob
bench-oob: build ## power status of 40 BMCs beside ipmitool; with BENCH='-memory 1000': an agent's memory
	@scripts/need ip:iproute2
	@scripts/need ipmi_sim:openipmi ipmitool:ipmitool || echo 'measured without what is missing'
	@go build -o $(BUILD)/bench-oob ./bench/oob
	@$(BUILD)/bench-oob $(BENCH)

.PHONY: bench-startup
bench-startup: build ## bmc --help and bmc get, beside etcdctl and curl
	@scripts/need etcdctl:etcd-client curl:curl || echo 'measured without what is missing'
	@go build -o $(BUILD)/bench-startup ./bench/startup
	@$(BUILD)/bench-startup $(BENCH)

.PHONY: bench-arrive
bench-arrive: build deps-lab kernel ramdisk tiny ## from create to the first ssh answer, by BIOS and UEFI, beside dd in a guest on the same QEMU machine; Debian too, after make image
	@scripts/need debugfs:e2fsprogs busybox:busybox-static nsenter:util-linux
	@go build -o $(BUILD)/arrive ./bench/arrive
	@$(BUILD)/arrive $(BENCH)

FUZZTIME ?= 30m
.PHONY: fuzz
fuzz: ## every fuzz target, FUZZTIME each
	@scripts/fuzz $(FUZZTIME)

.PHONY: clean
clean: ## remove bin/ and build/
	rm -rf bin $(BUILD)
