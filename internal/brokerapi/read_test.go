package brokerapi_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
)

// FuzzReadRequest reads what Go's own reader takes as well, and the same from it, and reads what it has read again.
func FuzzReadRequest(f *testing.F) {
	for _, seed := range []string{
		`{"payload":"YQ==","algorithm":"ECDSA-SHA-256"}`, ` {"algorithm":"\u0045","payload":"\/w=="} `,
		`{"payload":"","algorithm":""}`, `{"payload":"YQ=","algorithm":""}`, `{"payload":"YQ==","algorithm":"\u0045"}`,
		`{"payload":"YQ==","algorithm":"E"}}`, `{"payload":"YQ==","algorithm":"E"`, `{"payload":"YQ==","algorithm":"é"}`,
		`{"Payload":"YQ==","algorithm":""}`, `{"payload":"YQ==","payload":"","algorithm":""}`,
		`{"payload":null,"algorithm":""}`,
		`{"payload":"YR==","algorithm":""}`, `{"payload":"Y\nQ==","algorithm":""}`, `{"payload":"YQ==","algorithm":""}{}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var r, spaced brokerapi.SignatureRequest
		err := brokerapi.ReadRequest(data, &r)
		// White space before it keeps a request from the shorter way.
		general := brokerapi.ReadRequest(append([]byte(" "), data...), &spaced)
		if (err == nil) != (general == nil) || err == nil && (!bytes.Equal(r.Payload, spaced.Payload) ||
			r.Algorithm != spaced.Algorithm) {
			t.Errorf("%q: %+v, %v; with white space %+v, %v", data, r, err, spaced, general)
		}
		if err != nil {
			return
		}
		var other struct {
			Payload   []byte `json:"payload"`
			Algorithm string `json:"algorithm"`
		}
		decoder := json.NewDecoder(bytes.NewReader(data))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&other); err != nil || !bytes.Equal(other.Payload, r.Payload) ||
			other.Algorithm != r.Algorithm {
			t.Errorf("%q: %+v, and by the other reader %+v, %v", data, r, other, err)
		}
		var again brokerapi.SignatureRequest
		encoded, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := brokerapi.ReadRequest(encoded, &again); err != nil || !bytes.Equal(again.Payload, r.Payload) ||
			again.Algorithm != r.Algorithm {
			t.Errorf("%q: %+v, %v", encoded, again, err)
		}
	})
}
