# notation-hsm: the commands of a newcomer are "make demo" and "make test"; "make help" lists the others.
SHELL := /bin/bash
VERSION ?= 0.1.0
FUZZTIME ?= 20s
LINT := bin/tools/golangci-lint
# The copy library verifies GPG signatures of images, which nothing here uses; without this tag it wants GPGME's C library.
TAGS := containers_image_openpgp
# Tests make folders that others must not be able to write to, or what they hold is refused.
PRIVATE := umask 022 &&
# Where code and data lie differs in each run, and what the dynamic linker has resolved is read-only from the start.
HARDENED := -buildmode=pie -ldflags '-s -w -X main.version=$(VERSION) "-extldflags=-Wl,-z,relro,-z,now"'

.PHONY: help build demo test fuzz kubernetes lint bench tools packages clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build the executables into bin/
	go build -tags $(TAGS) -trimpath $(HARDENED) -o bin/ ./cmd/...

demo: ## sign, verify and tamper with a real image, in demo/, with everything it needs
	./softhsm-test/demo.sh

test: packages tools ## install what the tests need, and run them all (PKG=sign: one package of end-to-end tests)
	$(PRIVATE) go test -count=1 -tags $(TAGS) -timeout 75m $(if $(PKG),./softhsm-test/e2e/$(PKG),./...)

fuzz: ## run each fuzz target for FUZZTIME (20s)
	$(PRIVATE) ./softhsm-test/fuzz.sh $(FUZZTIME)

kubernetes: tools ## ask Kyverno and Ratify about signed images, at a real API server (first builds them: half an hour)
	./softhsm-test/packages.sh softhsm2 etcd-server
	./tools/kubernetes/build.sh
	$(PRIVATE) KUBERNETES=1 go test -count=1 -tags $(TAGS) -timeout 75m -run 'TestAdmission|TestCluster' ./softhsm-test/e2e/kubernetes

lint: $(LINT) ## check style, and the direction of imports
	$(LINT) run --allow-parallel-runners ./...
	go mod tidy -diff

bench: ## measure calls, time and memory (UPDATE_DOCS=1 writes docs/performance.md)
	./softhsm-test/packages.sh softhsm2 opensc opensc-pkcs11 gcc libc6-dev openssl
	$(PRIVATE) go run -tags $(TAGS) ./softhsm-test/bench

tools: ## build the notation command, the registry and containerd, as pinned below tools/
	go build -C tools -tags $(TAGS) -o ../bin/tools/ github.com/notaryproject/notation/cmd/notation github.com/distribution/distribution/v3/cmd/registry
	go build -C tools/containerd -tags $(TAGS) -o ../../bin/tools/ github.com/containerd/containerd/v2/cmd/containerd github.com/containerd/containerd/v2/cmd/ctr ./cri

$(LINT): tools/lint/go.mod tools/lint/go.sum
	go build -C tools/lint -o ../../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

packages:
	./softhsm-test/packages.sh softhsm2 opensc opensc-pkcs11 gcc libc6-dev openssl \
		opencryptoki swtpm libtpm2-pkcs11-1 p11-kit p11-kit-modules etcd-server etcd-client curl openssl

clean: ## remove what was built
	rm -rf bin demo
