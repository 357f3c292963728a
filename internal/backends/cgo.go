//go:build cgo

package backends

import (
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/pin"
	"github.com/notation-hsm/notation-hsm/internal/pkcs11"
	"github.com/notation-hsm/notation-hsm/internal/worker"
)

func modules() []keystore.Backend { return []keystore.Backend{pkcs11.New()} }

func workers(guard pin.Guard) []keystore.Backend {
	b := worker.New(pkcs11.New())
	b.Guard(guard)
	return []keystore.Backend{b}
}

func serveWorker() { worker.Main(func() keystore.Backend { return pkcs11.New() }) }
