package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity/identitytest"
)

const audience = "https://broker.example.com"

// clock is the time of an Authenticator. It stands still unless a test moves it.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) time() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// bench is an Authenticator with one issuer.
type bench struct {
	*Authenticator
	issuer *identitytest.Issuer
	clock  *clock
}

// newBench starts an issuer and an Authenticator that accepts its tokens. change may be nil.
func newBench(t *testing.T, change func(*Issuer)) *bench {
	t.Helper()
	i := identitytest.New(t)
	settings := Issuer{Issuer: i.URL, Audience: Strings{audience}, Type: "other", CA: i.CA}
	if change != nil {
		change(&settings)
	}
	a, err := New(Config{OIDC: []Issuer{settings}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	c := &clock{now: time.Unix(time.Now().Unix(), 0)}
	a.now = c.time
	return &bench{a, i, c}
}

// claims returns the claims of a token that is accepted, with changes. A nil value leaves a claim out.
func (b *bench) claims(changes map[string]any) map[string]any {
	now := b.clock.time()
	all := map[string]any{"aud": audience, "sub": "job", "iat": now.Unix(), "nbf": now.Unix(),
		"exp": now.Add(5 * time.Minute).Unix()}
	maps.Copy(all, changes)
	return all
}

func (b *bench) mint(t *testing.T, changes map[string]any) string {
	t.Helper()
	return b.issuer.Mint(t, b.claims(changes))
}

// present makes a request with a token.
func (b *bench) present(t *testing.T, token string) (Caller, error) {
	t.Helper()
	caller, err := b.Caller(bearerRequest(t.Context(), token))
	if err != nil {
		checkSecret(t, err, token)
	}
	return caller, err
}

func bearerRequest(ctx context.Context, token string) *http.Request {
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/v1/requests", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	return r
}

// secretClaim is the value of a claim that no error may repeat.
const secretClaim = "claim-that-no-error-repeats"

// checkSecret verifies that neither an error nor its hint has a part of a token, or secretClaim.
func checkSecret(t *testing.T, err error, token string) {
	t.Helper()
	text := err.Error() + "\n" + failure.From(err).Hint
	for _, part := range append(strings.Split(token, "."), secretClaim) {
		if len(part) >= 16 && strings.Contains(text, part) {
			t.Errorf("error contains a part of the token: %s", text)
		}
	}
}

// accepted fails the test unless a token is accepted.
func (b *bench) accepted(t *testing.T, token string) Caller {
	t.Helper()
	caller, err := b.present(t, token)
	if err != nil {
		t.Fatalf("token was refused: %v", err)
	}
	return caller
}

// refused fails the test unless a token is refused with a kind, and an error that contains want.
func (b *bench) refused(t *testing.T, token string, kind failure.Kind, want string) {
	t.Helper()
	_, err := b.present(t, token)
	checkFailure(t, err, kind, want)
}

func checkFailure(t *testing.T, err error, kind failure.Kind, want string) {
	t.Helper()
	switch {
	case err == nil:
		t.Errorf("there is no error, want %q", want)
	case failure.From(err).Kind != kind || !strings.Contains(err.Error(), want):
		t.Errorf("error is %v: %v, want %v: %q", failure.From(err).Kind, err, kind, want)
	case failure.From(err).Hint == "":
		t.Errorf("error has no hint: %v", err)
	}
}

// encode returns a compact token of a header, a payload and a signature.
func encode(header, payload string, sign func(input []byte) []byte) string {
	b64 := base64.RawURLEncoding.EncodeToString
	input := b64([]byte(header)) + "." + b64([]byte(payload))
	return input + "." + b64(sign([]byte(input)))
}

// signES256 returns a function that signs with a P-256 key as RFC 7518 says.
func signES256(t *testing.T, key jose.JSONWebKey) func([]byte) []byte {
	t.Helper()
	return func(input []byte) []byte {
		digest := sha256.Sum256(input)
		r, s, err := ecdsa.Sign(rand.Reader, key.Key.(*ecdsa.PrivateKey), digest[:])
		if err != nil {
			t.Fatal(err)
		}
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}
}

// payload returns the claims that are accepted as JSON, with the issuer.
func (b *bench) payload(t *testing.T, changes map[string]any) string {
	t.Helper()
	all := b.claims(changes)
	all["iss"] = b.issuer.URL
	data, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
