package nethsm

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// description is PublicKey of the API.
type description struct {
	Mechanisms   []string     `json:"mechanisms"`
	Type         string       `json:"type"`
	Restrictions restrictions `json:"restrictions"`
	Operations   int64        `json:"operations"`
	Public       *struct {
		Modulus  []byte `json:"modulus"`
		Exponent []byte `json:"publicExponent"`
		Data     []byte `json:"data"`
	} `json:"public"`
}

// ReadPublic asks the NetHSM for the key's public half.
func (k *Key) ReadPublic(ctx context.Context) (crypto.PublicKey, error) {
	d, err := k.describe(ctx, k.store.ask)
	if err != nil {
		return nil, err
	}
	public, err := d.public()
	if err != nil {
		return nil, failure.New(failure.Invalid, "key %s can't be used: %w",
			k.name(), err).
			WithHint("use a key of one of the specs RSA-2048, RSA-3072, RSA-4096, EC-256, EC-384 and EC-521")
	}
	return public, nil
}

func (k *Key) describe(ctx context.Context, ask asker) (*description, error) {
	r := request{what: "looking for key " + k.name(), method: http.MethodGet, path: keyPath(k.id)}
	a, err := ask(ctx, r, http.StatusOK)
	if err != nil {
		return nil, err
	}
	d, err := parseKey(a.body)
	if err != nil {
		return nil, malformed(r.what, err)
	}
	return d, nil
}

func (k *Key) exists(ctx context.Context, ask asker) (bool, error) {
	a, err := ask(ctx, request{what: "looking for key " + k.name(), method: http.MethodGet, path: keyPath(k.id)}, http.StatusOK,
		http.StatusNotFound)
	return err == nil && a.status == http.StatusOK, err
}

// isAs reports whether the key is there, and as new as it was asked for.
func (k *Key) isAs(ctx context.Context, g generation) (bool, error) {
	if there, err := k.exists(ctx, k.store.change); err != nil || !there {
		return false, err
	}
	d, err := k.describe(ctx, k.store.change)
	if err != nil {
		return false, err
	}
	public, err := d.public()
	if err != nil {
		return false, nil //nolint:nilerr // then it is another
	}
	p, isRSA := public.(*rsa.PublicKey)
	var tags []string
	if g.Restrictions != nil {
		tags = g.Restrictions.Tags
	}
	return d.Type == g.Type && d.Operations == 0 && (!isRSA || p.N.BitLen() == g.Length) &&
		sameSet(d.Mechanisms, g.Mechanisms) &&
		sameSet(d.Restrictions.Tags, tags), nil
}

func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

func parseKey(body []byte) (*description, error) {
	var d description
	if err := json.Unmarshal(body, &d); err != nil {
		return nil, err
	}
	if d.Type == "" {
		return nil, errors.New("it has no type")
	}
	return &d, nil
}

// maxModulus is the longest that NetHSM makes, in bytes.
const maxModulus = 8192 / 8

func (d *description) public() (crypto.PublicKey, error) {
	if d.Public == nil {
		return nil, fmt.Errorf("a key of type %q has no public half", clip(d.Type))
	}
	curve := map[string]elliptic.Curve{"EC_P256": elliptic.P256(), "EC_P384": elliptic.P384(),
		"EC_P521": elliptic.P521()}[d.Type]
	switch {
	case curve != nil:
		return ecdsa.ParseUncompressedPublicKey(curve, d.Public.Data)
	case d.Type != "RSA":
		return nil, fmt.Errorf("it is of type %q", clip(d.Type))
	}
	n, e := new(big.Int).SetBytes(d.Public.Modulus), new(big.Int).SetBytes(d.Public.Exponent)
	if len(d.Public.Modulus) > maxModulus || n.BitLen() < 1024 || !e.IsInt64() || e.Int64() < 3 || e.Int64() > 1<<31-1 {
		return nil, errors.New("its modulus or exponent is out of bounds")
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}

// parseKeyList reads KeyList of the API. IDs that can't be named are refused: they would be put into paths.
func parseKeyList(body []byte) ([]string, error) {
	var list []struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, err
	}
	ids := make([]string, len(list))
	for i, item := range list {
		if uri, err := config.ParseURI(config.NetHSMScheme + item.ID); err != nil || uri.Object == "" ||
			strings.HasSuffix(item.ID, "*") {
			return nil, fmt.Errorf("it has a key with the ID %q", clip(item.ID))
		}
		ids[i] = item.ID
	}
	return ids, nil
}

// Info returns what the NetHSM says of the key. It gives no private key out, and does not tell where one was made.
func (k *Key) Info(ctx context.Context) (key.Info, error) { return k.infoFrom(ctx, k.store.ask) }

func (k *Key) infoFrom(ctx context.Context, ask asker) (key.Info, error) {
	d, err := k.describe(ctx, ask)
	if err != nil {
		return key.Info{}, err
	}
	does := func(part string) *bool {
		is := slices.ContainsFunc(d.Mechanisms, func(m string) bool { return strings.Contains(m, part) })
		return &is
	}
	yes, no := true, false
	info := key.Info{
		URI: k.name(), Label: k.id, Sign: does("_Signature"), Decrypt: does("_Decryption"), Unwrap: &no, Derive: &no,
		Sensitive: &yes, Extractable: &no, AlwaysAuth: &no, Tags: d.Restrictions.Tags,
	}
	if public, err := d.public(); err == nil {
		k.public, info.Public = public, public
	}
	return info, nil
}
