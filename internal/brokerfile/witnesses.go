package brokerfile

import (
	"fmt"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// Witness is a server that is asked to cosign the log's checkpoints (C2SP tlog-witness).
type Witness struct {
	URL string `yaml:"url"` // https URL of its submission prefix, or http on loopback
	Key string `yaml:"key"` // its verifier key: NAME+ID+KEY
}

// maxWitnesses is the largest number of witnesses: a note has all their cosignatures, and verifiers accept at least 16
// signatures in one.
const maxWitnesses = 8

// client returns a client of the witness.
func (w Witness) client() (*translog.WitnessClient, error) {
	named, err := translog.ParseWitness(w.Key)
	if err != nil {
		return nil, err
	}
	return translog.NewWitnessClient(named, w.URL)
}

// WitnessClients returns a client of each witness of the file.
func (f *File) WitnessClients() (clients []*translog.WitnessClient, err error) {
	for _, w := range f.Log.Witnesses {
		client, err := w.client()
		if err != nil {
			return nil, err
		}
		clients = append(clients, client)
	}
	return clients, nil
}

// checkWitnesses checks the witnesses of the log.
func (f *File) checkWitnesses(add adding) {
	if n := len(f.Log.Witnesses); n > maxWitnesses {
		add("log.witnesses", fmt.Sprintf("list at most %d", maxWitnesses), "there are %d", n)
		return
	}
	type one struct {
		index int
		*translog.Witness
	}
	var before []one
	for i, w := range f.Log.Witnesses {
		at := fmt.Sprintf("log.witnesses[%d]", i)
		client, err := w.client()
		if err != nil {
			e := failure.From(err)
			add(at, e.Hint, "%s", e.What)
			continue
		}
		for _, other := range before {
			if other.SameKey(client.Witness()) || other.Name() == client.Witness().Name() {
				add(at, "list each witness once", "its key or name is that of log.witnesses[%d], too", other.index)
				break
			}
		}
		before = append(before, one{i, client.Witness()})
	}
}
