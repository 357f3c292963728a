// Package demand returns the approvals that a trust directory demands as package proof verifies them. It is apart from
// package trust, which the plugin links: what verifies approvals would make the plugin start later.
package demand

import (
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/translog"
	"github.com/notation-hsm/notation-hsm/internal/trust"
)

// Of returns all demands that a signature in a repository has to meet, with one bundle; none if it needs no approvals.
// The repository is its canonical name. There is one demand, or while an export is under way one of each manifest. It
// fails with Invalid for a credential or a key that the verifier cannot use.
func Of(required trust.Required, repository string) ([]*proof.Demand, error) {
	var all []*proof.Demand
	for _, a := range required.Of(repository) {
		d, err := of(a)
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

func of(a *trust.Approvals) (*proof.Demand, error) {
	d := &proof.Demand{Credentials: map[string][]byte{}, Names: map[string]string{}, Cosigned: a.Cosigned,
		MaxAge: time.Duration(a.MaxAge)}
	ids := map[string]string{}
	for _, p := range a.Approvers {
		ids[p.Name], d.Names[p.ID] = p.ID, p.Name
		for _, c := range p.Credentials {
			document := c.Document()
			if _, err := approval.DecodeCredential(document); err != nil {
				return nil, err
			}
			d.Credentials[approval.Hash(document)] = document
		}
	}
	for _, g := range a.Groups {
		group := proof.Group{Name: g.Name, Quorum: g.Quorum, Attested: g.Attestation != "", DeviceBound: g.DeviceBound}
		for _, name := range g.Members {
			group.Members = append(group.Members, ids[name])
		}
		for _, kind := range g.Kinds {
			group.Kinds = append(group.Kinds, approval.Kind(kind))
		}
		d.Groups = append(d.Groups, group)
	}
	for _, vkey := range a.Log {
		v, err := translog.ParseVerifier(vkey)
		if err != nil {
			return nil, err
		}
		d.Log = append(d.Log, v)
	}
	for _, vkey := range a.Witnesses {
		w, err := translog.ParseWitness(vkey)
		if err != nil {
			return nil, err
		}
		d.Witnesses = append(d.Witnesses, w)
	}
	return d, nil
}
