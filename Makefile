# notation-hsm: the commands of a newcomer are "make demo" and "make test"; "make help" lists the others.
SHELL := /bin/bash
VERSION ?= 0.1.0
FUZZTIME ?= 20s
CHAOS ?= 10m
LINT := bin/tools/golangci-lint
ACTIONLINT := bin/tools/actionlint
# The copy library verifies GPG signatures of images, which nothing here uses; without this tag it wants GPGME's C library.
TAGS := containers_image_openpgp
# What is built here is built as go.mod says; go.work is for the go command and editors, and knows no module below tools/.
export GOWORK := off
# Tests make folders that others must not be able to write to, or what they hold is refused.
PRIVATE := umask 022 &&
# Where code and data lie differs in each run, and what the dynamic linker has resolved is read-only from the start.
HARDENED := -buildmode=pie -ldflags '-s -w -X main.version=$(VERSION) "-extldflags=-Wl,-z,relro,-z,now"'

NOTATION_AND_REGISTRY := go build -C tools -tags $(TAGS) -o ../bin/tools/ \
	github.com/notaryproject/notation/cmd/notation github.com/distribution/distribution/v3/cmd/registry
PYTHON := cmp -s tools/python/requirements.txt bin/tools/python/requirements.txt || { \
	python3 -m venv --clear bin/tools/python && bin/tools/python/bin/pip --disable-pip-version-check install -q \
	--require-hashes --only-binary :all: -r tools/python/requirements.txt && \
	cp tools/python/requirements.txt bin/tools/python/; }
AXE := cmp -s tools/axe/package-lock.json bin/tools/axe/package-lock.json || { \
	rm -rf bin/tools/axe bin/tools/axe.new && cp -r tools/axe bin/tools/axe.new && \
	npm ci --prefix bin/tools/axe.new --ignore-scripts --no-audit --no-fund --silent && mv bin/tools/axe.new bin/tools/axe; }
BUILD := go build -tags $(TAGS) -trimpath $(HARDENED) -o bin/
PACKAGES := softhsm2 opensc opensc-pkcs11 gcc libc6-dev openssl opencryptoki swtpm libtpm2-pkcs11-1 p11-kit \
	p11-kit-modules libnss3 libnss3-tools openssh-client etcd-server etcd-client curl iproute2 dbus-daemon systemd podman \
	python3-venv python3-cryptography chromium openssh-client postgresql pgbouncer $(if $(shell command -v npm),,npm)

.PHONY: help build compiler demo demo-programs demo-broker demo-broker-programs check test explain-test fuzz seeded chaos kubernetes lint bench scale tools testtools packages clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: compiler ## build the executables into bin/
	$(BUILD) ./cmd/...

# Without a C compiler, go build leaves out all code that needs one, and succeeds.
compiler:
	@cgo=$$(go env CGO_ENABLED) || exit 1; [ -n "$(CGO_ENABLED)" ] || [ "$$cgo" = 1 ] || { \
		echo "error: cannot build the PKCS#11 part without a C compiler for this target: install one (apt-get" \
			"install gcc libc6-dev; set CC for another architecture), or run CGO_ENABLED=0 make build for programs" \
			"without PKCS#11" >&2; exit 1; }

demo: ## sign, verify and tamper with a real image, in demo/, with everything it needs
	@./softhsm-test/demo.sh

demo-programs: compiler
	$(BUILD) ./cmd/notation-hsm ./cmd/hsm-broker
	$(NOTATION_AND_REGISTRY)
	go build -o bin/tools/image ./softhsm-test/image

demo-broker: ## sign for CI jobs through a broker, as its policy says, in demo-broker/, with everything it needs
	@./softhsm-test/demo-broker.sh

demo-broker-programs: demo-programs
	go build -o bin/tools/issuer ./softhsm-test/issuer

check: compiler lint ## lint, and run the tests that need no root, package, module or network
	$(PRIVATE) go test -short -tags $(TAGS) ./internal/... ./cmd/... ./docs/

test: explain-test packages tools testtools ## install what the tests need, and run them all (PKG=sign: those of one job)
	$(PRIVATE) go test -count=1 -tags $(TAGS) -timeout 75m $(if $(PKG),./softhsm-test/e2e/$(PKG),./...)

explain-test:
	@echo "make test installs what is missing of these Debian packages: $(PACKAGES)."
	@echo "Then it builds notation, a registry, containerd, cosign, docker, Notary v1, python-tuf and axe into bin/tools/, and runs" \
		"$(if $(PKG),the end-to-end tests of $(PKG),all tests)."
	@echo "On 2 cores, the first build takes about 12 minutes, later ones seconds, and all tests take about 20 minutes."

fuzz: ## run each fuzz target for FUZZTIME (20s)
	$(PRIVATE) ./softhsm-test/fuzz.sh $(FUZZTIME)

seeded: ## plant mistakes into the broker, and have the model of its tests find each of them
	$(PRIVATE) SEEDED=1 go test -count=1 -tags $(TAGS) -timeout 30m -run TestSeeded ./internal/broker

# CHAOS is how long faults happen. SEED=N repeats the faults of a run, FAULTS=kill,failover has those alone happen.
chaos: ## have three replicas, PostgreSQL, modules and the network fail under load, for CHAOS (10m), and check what clients were told
	./softhsm-test/packages.sh softhsm2 opensc gcc libc6-dev p11-kit p11-kit-modules iproute2 postgresql
	$(PRIVATE) go test -count=1 -tags $(TAGS) -timeout 3h -v -run TestChaos ./softhsm-test/chaos -chaos.duration $(CHAOS) \
		-chaos.recovery 10s $(if $(SEED),-chaos.seed $(SEED)) $(if $(FAULTS),-chaos.faults $(FAULTS)) \
		$(if $(MISTAKE),-chaos.mistake "$(MISTAKE)")

kubernetes: tools ## ask Kyverno and Ratify about signed images, at a real API server (first builds them: half an hour)
	./softhsm-test/packages.sh softhsm2 etcd-server
	./tools/kubernetes/build.sh
	$(PRIVATE) KUBERNETES=1 go test -count=1 -tags $(TAGS) -timeout 75m -run 'TestAdmission|TestCluster' ./softhsm-test/e2e/kubernetes

lint: $(LINT) $(ACTIONLINT) ## check style, the workflows, and that go.mod is tidy
	$(LINT) run --allow-parallel-runners ./...
	$(ACTIONLINT) -shellcheck= -pyflakes= .github/workflows/*.yml
	$(ACTIONLINT) -shellcheck= -pyflakes= -ignore 'label "[a-z]+" is unknown' deploy/pipelines/github/*.yml
	go mod tidy -diff

bench: ## measure calls, time and memory (UPDATE_DOCS=1 writes docs/performance.md; SOAK=1000000: of so many signatures; LOG=10000000: of a log)
	./softhsm-test/packages.sh softhsm2 opensc opensc-pkcs11 gcc libc6-dev openssl postgresql
	$(PRIVATE) go run -tags $(TAGS) ./softhsm-test/bench $(if $(SOAK),soak $(SOAK))$(if $(LOG),log $(LOG))

scale: ## count what lists read of ten million requests in PostgreSQL (SCALE=100000: of so many)
	./softhsm-test/packages.sh postgresql
	$(PRIVATE) SCALE=$(or $(SCALE),10000000) go test -count=1 -v -tags $(TAGS) -timeout 90m -run TestScale ./internal/store/postgres

tools: ## build the notation command and a registry, as pinned below tools/
	$(NOTATION_AND_REGISTRY)

testtools: ## build what the tests need besides: containerd, cosign, docker, Notary v1, python-tuf and axe, as pinned below tools/
	go build -C tools/containerd -tags $(TAGS) -o ../../bin/tools/ github.com/containerd/containerd/v2/cmd/containerd github.com/containerd/containerd/v2/cmd/ctr ./cri
	go build -C tools/cosign -tags $(TAGS) -o ../../bin/tools/ github.com/sigstore/cosign/v3/cmd/cosign
	go build -C tools/docker -o ../../bin/tools/ github.com/docker/cli/cmd/docker
	go run -C tools/notary ./build ../../bin/tools
	$(PYTHON)
	$(AXE)

$(LINT): tools/lint/go.mod tools/lint/go.sum
	go build -C tools/lint -o ../../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

$(ACTIONLINT): tools/actionlint/go.mod tools/actionlint/go.sum
	go build -C tools/actionlint -o ../../$@ github.com/rhysd/actionlint/cmd/actionlint

packages:
	@./softhsm-test/packages.sh $(PACKAGES)

clean: ## remove what was built
	rm -rf bin demo demo-broker
