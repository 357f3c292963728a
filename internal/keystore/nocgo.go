//go:build !cgo

package keystore

import (
	"context"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// A PKCS#11 module is C code. A build without cgo has the NetHSM alone, and needs nothing of the system that it runs
// on.

func noPKCS11() error {
	return failure.New(failure.Invalid, "this build has no PKCS#11").
		WithHint("name a key on a NetHSM (nethsm:KEYID), or use the build with cgo")
}

func openPKCS11(context.Context, *config.Settings) (Store, error) { return nil, noPKCS11() }

func tokensPKCS11(context.Context, *config.Settings) ([]key.Token, error) { return nil, noPKCS11() }

func generatePKCS11(context.Context, *config.Settings, key.Request) (key.Info, error) {
	return key.Info{}, noPKCS11()
}

func importWrappingPKCS11(context.Context, *config.Settings, string, key.WrappingKey, []byte) error {
	return noPKCS11()
}

func matchesPKCS11(config.URI, key.Token) bool { return false }
