package nethsmtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"
)

type privateData struct {
	PrimeP         string `json:"primeP,omitempty"`
	PrimeQ         string `json:"primeQ,omitempty"`
	PublicExponent string `json:"publicExponent,omitempty"`
	Data           string `json:"data,omitempty"`
}

type importRequest struct {
	Mechanisms   []string     `json:"mechanisms"`
	Type         string       `json:"type"`
	Private      privateData  `json:"private"`
	Restrictions restrictions `json:"restrictions,omitempty"`
	Label        string       `json:"label,omitempty"`
}

// importKey serves POST /keys, where the NetHSM chooses the ID, and PUT /keys/ID.
func importKey(c *call) *reply {
	name := c.keyName()
	put := name.id != ""
	if !put {
		name.id = randomID()
	}
	read := (*call).keyOfJSON
	if c.contentType() == typeForm {
		read = (*call).keyOfForm
	}
	k, refusal := read(c)
	if refusal != nil {
		return refusal
	}
	if refusal := k.check(); refusal != nil {
		return refusal
	}
	if c.state.keys[name] != nil {
		return fail(http.StatusConflict, "Key with id %s already exists", name.id)
	}
	c.state.keys[name] = k
	if put {
		return done()
	}
	return created("/keys/", name.id)
}

func (c *call) keyOfJSON() (*key, *reply) {
	var sent importRequest
	if refusal := c.decode(&sent); refusal != nil {
		return nil, refusal
	}
	k, err := sent.Private.key(sent.Type)
	if err != nil {
		return nil, fail(http.StatusBadRequest, "private key: %v", err)
	}
	k.mechanisms, k.tags, k.label = sent.Mechanisms, sent.Restrictions.Tags, sent.Label
	return k, nil
}

// key computes a key from the numbers of the description's KeyPrivateData.
func (p privateData) key(kind string) (*key, error) {
	numbers := map[string][]byte{}
	for name, value := range map[string]string{"p": p.PrimeP, "q": p.PrimeQ, "e": p.PublicExponent, "data": p.Data} {
		b, err := base64.StdEncoding.DecodeString(value)
		if err != nil {
			return nil, err
		}
		numbers[name] = b
	}
	if kind == "RSA" && (p.PrimeP == "" || p.PrimeQ == "" || p.PublicExponent == "") {
		return nil, errors.New("primeP, primeQ and publicExponent are needed")
	}
	if kind != "RSA" && p.Data == "" {
		return nil, errors.New("data is needed")
	}
	number := func(name string) *big.Int { return new(big.Int).SetBytes(numbers[name]) }
	switch kind {
	case "RSA":
		one, e := big.NewInt(1), number("e")
		phi := new(big.Int).Mul(new(big.Int).Sub(number("p"), one), new(big.Int).Sub(number("q"), one))
		d := new(big.Int).ModInverse(e, phi)
		if d == nil || !e.IsInt64() {
			return nil, errors.New("the numbers are no RSA key")
		}
		private := &rsa.PrivateKey{
			PublicKey: rsa.PublicKey{N: new(big.Int).Mul(number("p"), number("q")), E: int(e.Int64())},
			D:         d, Primes: []*big.Int{number("p"), number("q")},
		}
		private.Precompute()
		return newKey(private)
	case "Generic":
		return &key{kind: kind, secret: numbers["data"]}, nil
	case "Curve25519":
		if len(numbers["data"]) != ed25519.SeedSize {
			return nil, errors.New("a Curve25519 key has 32 bytes")
		}
		return newKey(ed25519.NewKeyFromSeed(numbers["data"]))
	}
	if curves[kind] == nil {
		return nil, fmt.Errorf("this test server has no keys of type %q", kind)
	}
	private, err := ecdsa.ParseRawPrivateKey(curves[kind], numbers["data"])
	if err != nil {
		return nil, err
	}
	return newKey(private)
}

// keyOfForm reads a key as PEM, with its arguments as JSON beside it.
func (c *call) keyOfForm() (*key, *reply) {
	_, parameters, _ := mime.ParseMediaType(c.request.Header.Get("Content-Type"))
	form, err := multipart.NewReader(bytes.NewReader(c.body), parameters["boundary"]).ReadForm(maxBody)
	if err != nil {
		return nil, fail(http.StatusBadRequest, "form: %v", err)
	}
	part := func(name string) []byte {
		if files := form.File[name]; len(files) == 1 {
			f, err := files[0].Open()
			if err != nil {
				return nil
			}
			defer f.Close()
			var b bytes.Buffer
			_, _ = b.ReadFrom(f) // in memory: maxBody bounds the form
			return b.Bytes()
		}
		return []byte(strings.Join(form.Value[name], ""))
	}
	for name := range form.Value {
		if name != "arguments" && name != "key_file" {
			return nil, fail(http.StatusBadRequest, "form: unknown part %q", name)
		}
	}
	var sent struct {
		Mechanisms   []string     `json:"mechanisms"`
		Restrictions restrictions `json:"restrictions,omitempty"`
	}
	if refusal := decodeJSON(part("arguments"), &sent); refusal != nil {
		return nil, refusal
	}
	private, err := parsePEM(part("key_file"))
	if err != nil {
		return nil, fail(http.StatusBadRequest, "key_file: %v", err)
	}
	k, err := newKey(private)
	if err != nil {
		return nil, fail(http.StatusBadRequest, "key_file: %v", err)
	}
	k.mechanisms, k.tags = sent.Mechanisms, sent.Restrictions.Tags
	return k, nil
}

// parsePEM reads a private key in PKCS #8, PKCS #1 or SEC 1.
func parsePEM(data []byte) (any, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("no PEM")
	}
	switch block.Type {
	case "RSA PRIVATE KEY":
		return x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		return x509.ParseECPrivateKey(block.Bytes)
	}
	return x509.ParsePKCS8PrivateKey(block.Bytes)
}
