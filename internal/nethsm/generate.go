package nethsm

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// generation is KeyGenerateRequestData of the API.
type generation struct {
	Mechanisms   []string      `json:"mechanisms"`
	Type         string        `json:"type"`
	Length       int           `json:"length,omitempty"`
	ID           string        `json:"id"`
	Restrictions *restrictions `json:"restrictions,omitempty"`
}

type restrictions struct {
	Tags []string `json:"tags,omitempty"`
}

// Generate makes a key, as the administrator, with the label as its ID, for one usage and the ways of its spec alone.
// Another id is not kept: a key of a NetHSM has one name.
func generate(ctx context.Context, s *config.Settings, r key.Request) (key.Info, error) {
	store, err := Open(s)
	if err != nil {
		return key.Info{}, err
	}
	defer store.Close()
	if r.Wrappable {
		return key.Info{}, unwrappable()
	}
	k, err := store.generate(ctx, r)
	if err != nil {
		return key.Info{}, err
	}
	return k.infoFrom(ctx, store.change)
}

func (s *Store) generate(ctx context.Context, r key.Request) (*Key, error) {
	g, err := terms(r)
	if err != nil {
		return nil, err
	}
	k := &Key{store: s, id: r.Label}
	uri := k.name()
	if there, err := k.exists(ctx, s.change); err != nil || there {
		if there {
			err = failure.New(failure.Invalid, "the NetHSM has a key %s already", uri).
				WithHint("choose another label, or use the key that is there: see 'notation-hsm key show " +
					uri + "'")
		}
		return nil, err
	}
	body, err := json.Marshal(g)
	if err != nil {
		return nil, err
	}
	_, err = s.change(ctx, request{
		what: "making key " + uri, method: http.MethodPost, path: "/keys/generate", body: body, slow: r.Spec.IsRSA(),
		// Nobody had the name a moment ago, and it is the very key that was asked for: so it was made.
		done:   func() (bool, error) { return k.isAs(ctx, g) },
		unsure: "it may have been made: see 'notation-hsm key list --token nethsm:'",
	}, http.StatusCreated, http.StatusNoContent)
	return k, err
}

// terms says in NetHSM's words which key is asked for, if it can be had at all.
func terms(r key.Request) (generation, error) {
	if uri, err := config.ParseURI(config.NetHSMScheme + r.Label); err != nil || strings.HasSuffix(uri.Object, "*") ||
		uri.Object == "" {
		return generation{}, failure.New(failure.Invalid, "%q can't be the ID of a key on a NetHSM", r.Label).
			WithHint(`use letters, digits and "_.-", at most 128 of them`)
	}
	g := generation{ID: r.Label, Type: map[int]string{256: "EC_P256", 384: "EC_P384", 521: "EC_P521"}[r.Spec.Bits]}
	if len(r.Tags) > 0 {
		g.Restrictions = &restrictions{r.Tags}
	}
	if r.Spec.IsRSA() {
		g.Type, g.Length = "RSA", r.Spec.Bits
	}
	switch {
	case r.Usage == key.Decrypt && !r.Spec.IsRSA():
		return generation{}, failure.New(failure.Invalid,
			"a NetHSM agrees on no keys (ECDH), so its %s keys open nothing", r.Spec.Name).
			WithHint("use an RSA key, as in --spec RSA-3072")
	case r.Usage == key.Decrypt: // OAEP alone: PKCS #1 v1.5 tells too much about what it opens
		g.Mechanisms = []string{"RSA_Decryption_OAEP_SHA1", "RSA_Decryption_OAEP_SHA256", "RSA_Decryption_OAEP_SHA384",
			"RSA_Decryption_OAEP_SHA512"}
	case r.Spec.IsRSA():
		g.Mechanisms = []string{"RSA_Signature_PSS_" + hashNames[r.Spec.Hash]}
	default:
		g.Mechanisms = []string{"ECDSA_Signature"}
	}
	return g, nil
}
