package layerkey

import (
	"context"
	"crypto"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// remote is a key that unwraps layer keys itself, as one of a broker does. It answers with what it is told to.
type remote struct {
	keystore.Key
	answer func(jwe []byte) ([]byte, error)
	asked  int
}

func (r *remote) UnwrapLayerKey(_ context.Context, jwe []byte) ([]byte, error) {
	r.asked++
	return r.answer(jwe)
}

// TestUnwrapper opens a layer with a key that unwraps the packet itself, and gets the packet as it is. What such a key
// answers is checked like what a module decrypts.
func TestUnwrapper(t *testing.T) {
	m := newMemory(t)
	m.add("EC-256", key.Decrypt)
	to, err := m.recipient(uri("ec-256"))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := Seal([]byte(options), []Recipient{to})
	if err != nil {
		t.Fatal(err)
	}
	s, err := m.ks.Resolve(uri("ec-256"), nil, config.Flags)
	if err != nil {
		t.Fatal(err)
	}
	store, err := s.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	private, err := store.Key(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	here := func(jwe []byte) ([]byte, error) { // as an agent does
		packet, err := ParseJWE(jwe)
		if err != nil {
			return nil, err
		}
		return packet.Open(t.Context(), "release", private)
	}
	says := func(text string) func([]byte) ([]byte, error) {
		return func([]byte) ([]byte, error) { return []byte(text), nil }
	}
	for name, c := range map[string]struct {
		scheme string
		answer func([]byte) ([]byte, error)
		kind   failure.Kind
		asked  int
	}{
		"opened":        {schemeHSM, here, -1, 1},
		"opened as jwe": {schemeJWE, here, -1, 1},
		"no object":     {schemeHSM, says(`[]`), failure.Invalid, 1},
		"no JSON":       {schemeHSM, says(`{`), failure.Invalid, 1},
		"too long":      {schemeHSM, says(`{"a":"` + strings.Repeat("x", optionsBounds.Bytes) + `"}`), failure.Invalid, 1},
		"refused": {schemeHSM, func([]byte) ([]byte, error) { return nil, failure.New(failure.Denied, "no") },
			failure.Denied, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := &remote{Key: private, answer: c.answer}
			keys := &Keys{keystore: m.ks, references: []string{"broker:release"}, prepared: true,
				candidates: []*candidate{newCandidate("broker:release", private.Public(), nil, r)}}
			got, err := keys.Open(t.Context(), map[string]string{AnnotationPrefix + c.scheme: base64.StdEncoding.EncodeToString(
				sealed)})
			if c.kind < 0 && (err != nil || string(got) != options) || c.kind >= 0 && !failure.Is(err, c.kind) {
				t.Errorf("%q, %v", got, err)
			}
			if r.asked != c.asked {
				t.Errorf("the key was asked %d times", r.asked)
			}
		})
	}
}

// TestUnwrapperAskedOnce asks for a packet once, whose wrapped keys name no recipient and all fit the key.
func TestUnwrapperAskedOnce(t *testing.T) {
	t.Parallel()
	var to []jose.Recipient
	for _, name := range []string{"a", "b", "c"} {
		to = append(to, jose.Recipient{Algorithm: jose.ECDH_ES_A256KW, Key: private(t, name, "EC-256").Public()})
	}
	encrypter, err := jose.NewMultiEncrypter(jose.A256GCM, to, nil)
	if err != nil {
		t.Fatal(err)
	}
	jwe, err := encrypter.Encrypt([]byte(options))
	if err != nil {
		t.Fatal(err)
	}
	r := &remote{answer: func([]byte) ([]byte, error) { return nil, failure.New(failure.Invalid, "none opens") }}
	keys := &Keys{references: []string{"broker:release"}, prepared: true,
		candidates: []*candidate{newCandidate("broker:release", private(t, "d", "EC-256").Public(), nil, r)}}
	_, err = keys.Open(t.Context(), map[string]string{
		AnnotationPrefix + schemeJWE: base64.StdEncoding.EncodeToString([]byte(jwe.FullSerialize()))})
	if !failure.Is(err, failure.Invalid) || r.asked != 1 {
		t.Errorf("%v; the key was asked %d times", err, r.asked)
	}
}

// TestOpenJWE refuses packets for another key, and what is no JWE, before the key is used.
func TestOpenJWE(t *testing.T) {
	t.Parallel()
	for _, data := range []string{"", "{}", "[]", strings.Repeat("x", packetLimit+1), `{"protected":"e30"}`} {
		if _, err := ParseJWE([]byte(data)); !failure.Is(err, failure.Invalid) {
			t.Errorf("%.20q: %v", data, err)
		}
	}
	sealed, err := Seal([]byte(options), []Recipient{{Name: "other", Public: private(t, "other", "EC-256").Public()}})
	if err != nil {
		t.Fatal(err)
	}
	packet, err := ParseJWE(sealed)
	if err != nil {
		t.Fatal(err)
	}
	m := newMemory(t)
	_, err = packet.Open(t.Context(), "release", onlyPublic{public: m.add("EC-384", key.Decrypt)})
	if !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), "no key here opens the layer") {
		t.Error(err)
	}
}

// onlyPublic is a key that panics when its private half is used.
type onlyPublic struct {
	keystore.Key
	public crypto.PublicKey
}

func (k onlyPublic) Public() crypto.PublicKey { return k.public }
