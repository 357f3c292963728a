// Package session has the sessions of approvers: tokens that only the broker can make, which it keeps nothing of; a
// bounded memory of what can be used once; and a bound of attempts to sign in.
package session

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Life is how long a session lasts.
const Life = 15 * time.Minute

// maxToken is the length of the longest token, in bytes.
const maxToken = 2048

// Sessions makes and reads tokens. It is safe for concurrent use.
type Sessions struct {
	key  []byte
	uses Uses // of tokens: to end them before they expire
	now  func() time.Time
}

// Session is what a token says.
type Session struct {
	Person     string // name
	Credential string // sha256:HEX of the one that the person signed in with
	Issued     time.Time
	Expires    time.Time
	CSRF       string // of forms of this session; nobody can tell it by the token
}

// content is the encoding of a session in a token.
type content struct {
	Person     string `json:"person"`
	Credential string `json:"credential"`
	Issued     int64  `json:"issued"`  // Unix time
	Expires    int64  `json:"expires"` // Unix time
	Random     string `json:"random"`  // so that no two sessions are the same
}

// maxEnded is the number of sessions that a broker without replicas remembers that people have ended.
const maxEnded = 20000

// NewKey returns a key for New. It is random, and nowhere but in the memory of this process: whoever has a copy of the
// database cannot make sessions. So sessions end with the process. Replicas derive theirs from the key that they share,
// which is not in the database either: a session that one of them has begun counts at all of them, whichever restarts.
func NewKey() []byte {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // never fails
	return key
}

// New returns Sessions whose tokens are authenticated with a key of 32 bytes, which has no other use. uses remembers
// which of them people have ended; nil for a memory of this process.
func New(key []byte, uses Uses, now func() time.Time) *Sessions {
	if uses == nil {
		uses = NewMemory(maxEnded, now)
	}
	return &Sessions{key: key, uses: uses, now: now}
}

// Issue returns a new token of a person who signed in with a credential: base64url(content) "." base64url(HMAC), and
// when it expires.
func (s *Sessions) Issue(person, credential string) (token string, expires time.Time) {
	now := s.now().UTC().Truncate(time.Second)
	expires = now.Add(Life)
	data, err := json.Marshal(content{Person: person, Credential: credential, Issued: now.Unix(),
		Expires: expires.Unix(), Random: rand.Text()})
	if err != nil {
		panic(err) // strings and numbers do not fail
	}
	encoded := base64.RawURLEncoding.EncodeToString(data)
	return encoded + "." + s.mac("token", encoded), expires
}

// Read returns what a token says. It fails with Denied for a token that these Sessions did not make, or that is out of
// its time, and with Unavailable when nobody knows whether it was ended. Whether the credential is still enrolled is up
// to the caller.
func (s *Sessions) Read(ctx context.Context, token string) (Session, error) {
	encoded, mac, found := strings.Cut(token, ".")
	if len(token) > maxToken || !found || !hmac.Equal([]byte(mac), []byte(s.mac("token", encoded))) {
		return Session{}, denied("the token is not one of this broker")
	}
	var read content
	data, err := base64.RawURLEncoding.DecodeString(encoded)
	if err == nil {
		err = json.Unmarshal(data, &read)
	}
	if err != nil { // nobody else can have made it
		return Session{}, denied("the token is of another version of the broker")
	}
	session := Session{Person: read.Person, Credential: read.Credential, Issued: time.Unix(read.Issued, 0).UTC(),
		Expires: time.Unix(read.Expires, 0).UTC(), CSRF: s.mac("csrf", encoded)}
	switch now := s.now(); {
	case !now.Before(session.Expires):
		return Session{}, denied("it has expired")
	case now.Before(session.Issued.Add(-Life)): // the clock was set back: the token would last longer than it may
		return Session{}, denied("it begins in the future")
	}
	ended, err := s.uses.Used(ctx, endOf(token))
	if err != nil {
		return Session{}, err
	}
	if ended {
		return Session{}, denied("it was ended")
	}
	return session, nil
}

// endOf names the end of a session, which there is once.
func endOf(token string) [32]byte { return sha256.Sum256([]byte("end of session\x00" + token)) }

// End ends a session before it expires: its person has signed out. It does nothing for a token that Read refuses, so
// only people who sign in make it remember something.
func (s *Sessions) End(ctx context.Context, token string) error {
	session, err := s.Read(ctx, token)
	if failure.Is(err, failure.Denied) {
		return nil
	}
	if err != nil {
		return err
	}
	first, err := s.uses.Once(ctx, endOf(token), session.Expires)
	if err != nil || first {
		return err
	}
	if ended, err := s.uses.Used(ctx, endOf(token)); err != nil || ended {
		return err
	}
	return failure.New(failure.Throttled, "cannot end the session: too many sessions were ended").
		WithHint("close the browser; the session ends by itself within 15 minutes")
}

// mac returns the HMAC-SHA-256 of a text for one purpose, in base64url.
func (s *Sessions) mac(purpose, text string) string {
	h := hmac.New(sha256.New, s.key)
	h.Write([]byte("notation-hsm session v1 " + purpose + "\x00" + text))
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

func denied(why string) error {
	return failure.New(failure.Denied, "cannot accept the session: %s", why).WithHint("sign in again")
}
