// Package backends makes the keystore of a process, with every kind of module that the build can reach. The commands
// alone call it; the rooms below take keys and references.
package backends

import (
	"io"
	"os"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/nethsm"
	"github.com/notation-hsm/notation-hsm/internal/pin"
	"github.com/notation-hsm/notation-hsm/internal/remote"
)

// Keystore returns a keystore with all backends of this build. It writes warnings for people to standard error.
func Keystore() *keystore.Keystore { return KeystoreWarning(os.Stderr) }

// KeystoreWarning is Keystore with another writer for warnings.
func KeystoreWarning(warnings io.Writer) *keystore.Keystore {
	return keystore.New(missing, append(modules(), nethsm.New(warnings), remote.New())...)
}

// Service returns a keystore for a program that runs for long: each PKCS#11 module is used in a process of its own. The
// program calls ServeWorker before anything else.
func Service() *keystore.Keystore { return GuardedService(nil) }

// GuardedService is Service with a guard that is asked before a PIN is tried on a PKCS#11 token.
func GuardedService(guard pin.Guard) *keystore.Keystore {
	return keystore.New(missing, append(workers(guard), nethsm.New(os.Stderr))...)
}

// ServeWorker serves the parent process and ends this one, if this one was started for a module of a Service. Else it
// returns at once.
func ServeWorker() { serveWorker() }

func missing(scheme string) error {
	if scheme == config.Scheme {
		return failure.New(failure.Unsupported, "this build has no PKCS#11").
			WithHint("name a key on a NetHSM (nethsm:KEYID), or use the build with cgo")
	}
	return failure.New(failure.Unsupported, "this build cannot reach %s keys", scheme)
}
