package translog

import (
	"crypto/ed25519"
	"time"
)

// Witness verifies the cosignatures of a witness: a server that signs a checkpoint only if it continues all that it has
// signed before (C2SP tlog-cosignature, with Ed25519).
type Witness struct {
	name string
	key  ed25519.PublicKey
}

// Name returns the name of the witness.
func (w *Witness) Name() string { return w.name }

// Cosignature is a verified cosignature of a checkpoint.
type Cosignature struct {
	Witness string    // name
	Time    time.Time // of the witness's clock
}
