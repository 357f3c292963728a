package ca

import (
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
)

// Summary describes a CA.
type Summary struct {
	Name          string     `json:"name"`
	Parent        string     `json:"parent,omitempty"`
	Key           string     `json:"key"`
	Folder        string     `json:"folder"`
	Subject       string     `json:"subject"`
	Serial        string     `json:"serial"`
	Fingerprint   string     `json:"fingerprint"` // SHA-256 of the certificate, in hex
	NotBefore     time.Time  `json:"notBefore"`
	NotAfter      time.Time  `json:"notAfter"`
	CRLNumber     string     `json:"crlNumber,omitempty"`
	CRLNextUpdate *time.Time `json:"crlNextUpdate,omitempty"`
	Revoked       int        `json:"revoked"` // number of revoked certificates
	Issued        []Entry    `json:"issued"`
	Records       int        `json:"ledgerRecords"`
	Head          string     `json:"ledgerHead,omitempty"` // SHA-256 of the last record's line, in hex
	Unsigned      int        `json:"ledgerUnsigned"`       // number of records that the CA's key has not signed yet
}

// Show returns a description of the CA and all its certificates.
func (a *Authority) Show() (*Summary, error) {
	own := a.Certificate()
	s := &Summary{
		Name: a.Name, Parent: a.Parent, Key: a.Key, Folder: a.dir, Subject: own.Subject.String(), Serial: certs.Serial(own),
		Fingerprint: certs.Fingerprint(own), NotBefore: own.NotBefore, NotAfter: own.NotAfter,
	}
	l, err := a.read()
	if err != nil {
		return nil, err
	}
	if s.Issued = l.entries; s.Issued == nil {
		s.Issued = []Entry{}
	}
	if l.size > 0 { // else it is still in the files of an earlier version
		s.Records, s.Head, s.Unsigned = l.number, l.head, l.number-l.signed
	}
	for _, e := range s.Issued {
		if e.Revoked != nil {
			s.Revoked++
		}
	}
	list, err := a.Published()
	if err != nil {
		return nil, err
	}
	if list != nil {
		s.CRLNumber, s.CRLNextUpdate = list.Number.String(), &list.NextUpdate
	}
	return s, nil
}

// Describe returns the fields of the CA's certificate as name and value.
func (a *Authority) Describe() [][]string {
	return certs.Describe(a.Certificate(), a.Certificate().Issuer.String())
}
