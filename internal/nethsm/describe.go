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

// ReadPublic reads the public half from the NetHSM. A listed key remembers it. ReadPublic fails with Unsupported for a
// key of a type or length that is not used here.
func (k *Key) ReadPublic(ctx context.Context) (crypto.PublicKey, error) {
	d, err := k.describe(ctx, k.store.ask)
	if err != nil {
		return nil, err
	}
	public, err := d.public()
	if err != nil {
		return nil, failure.New(failure.Unsupported, "cannot use key %s: %w", k.name(), err).
			WithHint("use a key of one of the specs RSA-2048, RSA-3072, RSA-4096, EC-256, EC-384 and EC-521")
	}
	if k.Public() == nil {
		k.learn(public)
	}
	return public, nil
}

// reading returns the request for the description of the key.
func (k *Key) reading() request {
	return request{what: "reading key " + k.name(), method: http.MethodGet, path: keyPath(k.id)}
}

// describe reads the description of the key. It fails with NotFound if the key does not exist.
func (k *Key) describe(ctx context.Context, ask asker) (*description, error) {
	r := k.reading()
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
	a, err := ask(ctx, k.reading(), http.StatusOK, http.StatusNotFound)
	return err == nil && a.status == http.StatusOK, err
}

// matches reports whether the key exists, has the requested properties, and was never used.
func (k *Key) matches(ctx context.Context, g generation) (bool, error) {
	if exists, err := k.exists(ctx, k.store.change); err != nil || !exists {
		return false, err
	}
	d, err := k.describe(ctx, k.store.change)
	if err != nil {
		return false, err
	}
	public, err := d.public()
	if err != nil {
		return false, nil //nolint:nilerr // then it is another key
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
		return nil, errors.New("no type")
	}
	return &d, nil
}

// maxModulus is the length of the longest modulus that NetHSM generates, in bytes.
const maxModulus = 8192 / 8

// public returns the public half as Go's crypto packages have it.
func (d *description) public() (crypto.PublicKey, error) {
	if d.Public == nil {
		return nil, fmt.Errorf("no public half of type %q", truncate(d.Type))
	}
	curve := map[string]elliptic.Curve{"EC_P256": elliptic.P256(), "EC_P384": elliptic.P384(),
		"EC_P521": elliptic.P521()}[d.Type]
	switch {
	case curve != nil:
		return ecdsa.ParseUncompressedPublicKey(curve, d.Public.Data)
	case d.Type != "RSA":
		return nil, fmt.Errorf("unknown type %q", truncate(d.Type))
	}
	n, e := new(big.Int).SetBytes(d.Public.Modulus), new(big.Int).SetBytes(d.Public.Exponent)
	if len(d.Public.Modulus) > maxModulus || n.BitLen() < 1024 || !e.IsInt64() || e.Int64() < 3 || e.Int64() > 1<<31-1 {
		return nil, errors.New("modulus or exponent out of range")
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}

// Info returns the attributes that the NetHSM reports. Private keys are never extractable; whether a key was imported
// is not reported.
func (k *Key) Info(ctx context.Context) (key.Info, error) { return k.readInfo(ctx, k.store.ask) }

func (k *Key) readInfo(ctx context.Context, ask asker) (key.Info, error) {
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
		k.learn(public)
		info.Public = public
	}
	return info, nil
}
