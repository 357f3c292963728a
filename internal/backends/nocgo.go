//go:build !cgo

package backends

import "github.com/notation-hsm/notation-hsm/internal/keystore"

// A PKCS#11 module is C code, which a build without cgo cannot call.
func modules() []keystore.Backend { return nil }

func workers() []keystore.Backend { return nil }

func serveWorker() {}
