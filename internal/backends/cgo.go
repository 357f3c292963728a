//go:build cgo

package backends

import (
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/pkcs11"
)

func modules() []keystore.Backend { return []keystore.Backend{pkcs11.New()} }
