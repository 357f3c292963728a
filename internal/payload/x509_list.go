package payload

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"time"
)

func (a *Artifact) readRevocations(data []byte) error {
	var version int
	var issuer distinguishedName
	var algorithm, revoked, extensions asn1.RawValue
	err := readSequence(data, []derField{
		{"version", tagInteger, false, &version, ""},
		{"signature", tagSequence, false, &algorithm, ""},
		{"issuer", tagSequence, false, &issuer, ""},
		{"this update", tagTime, false, &a.SigningTime, ""},
		{"next update", tagTime, false, &a.Expiry, ""}, // RFC 5280 requires it
		{"revoked certificates", tagSequence, true, &revoked, ""},
		{"extensions", tagFirst, false, &extensions, ""},
	})
	if err != nil {
		return err
	}
	if err := a.readAlgorithm(algorithm.FullBytes); err != nil {
		return err
	}
	if err := a.readExtensions(extensions.Bytes, "extensions"); err != nil {
		return err
	}
	if err := a.readEntries(revoked); err != nil {
		return err
	}
	if len(issuer) == 0 {
		return errors.New("issuer: empty")
	}
	signed, err := withSignature(data, algorithm.FullBytes)
	if err != nil {
		return err
	}
	if _, err := x509.ParseRevocationList(signed); err != nil {
		return err
	}
	a.Encoding = "crl"
	if a.Name, err = issuer.text(); err != nil {
		return fmt.Errorf("issuer: %w", err)
	}
	return nil
}

// readEntries reads the entries of a revocation list. It adds their number, and of each the time and the extensions.
func (a *Artifact) readEntries(revoked asn1.RawValue) error {
	entries, err := derElements(revoked.Bytes)
	if err != nil {
		return err
	}
	if len(revoked.FullBytes) > 0 && len(entries) == 0 {
		return errors.New("revoked certificates: an empty list")
	}
	a.Annotations["revoked"] = strconv.Itoa(len(entries))
	for i, entry := range entries {
		place := fmt.Sprintf("revoked certificates[%d]", i)
		var serial *big.Int
		var date time.Time
		var extensions asn1.RawValue
		err := readSequence(entry.FullBytes, []derField{
			{"serial number", tagInteger, false, &serial, ""},
			{"date", tagTime, false, &date, ""},
			{"extensions", tagSequence, true, &extensions, ""},
		})
		if err != nil {
			return fmt.Errorf("%s: %w", place, err)
		}
		number, err := serialText(serial)
		if err != nil {
			return fmt.Errorf("%s: %w", place, err)
		}
		name := "revoked[" + number + "]"
		if a.Annotations[name] != "" {
			return fmt.Errorf("%s: the serial number %s twice", place, number)
		}
		a.Annotations[name] = date.Format(time.RFC3339)
		if len(extensions.FullBytes) == 0 {
			continue
		}
		inner := &Artifact{Annotations: map[string]string{}}
		if err := inner.readExtensions(extensions.FullBytes, place+".extensions"); err != nil {
			return err
		}
		for key, value := range inner.Annotations {
			a.Annotations[name+"."+key] = value
		}
	}
	return nil
}
