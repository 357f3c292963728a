//go:build !cgo

package backends

import (
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/pin"
)

// A PKCS#11 module is C code, which a build without cgo cannot call.
func modules() []keystore.Backend { return nil }

func workers(pin.Guard) []keystore.Backend { return nil }

func serveWorker() {}
