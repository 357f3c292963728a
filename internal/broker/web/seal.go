package web

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// How long a challenge is good for.
const (
	signInTime = 2 * time.Minute
	decideTime = 4 * time.Minute // less than a clock may differ from the broker's
	enrolTime  = 10 * time.Minute
)

// What a challenge is for.
const (
	forSignIn   = "sign-in"
	forDecision = "decision"
	forEnrol    = "enrol"
	forEnrolled = "enrolled"
)

// seal returns what shows later that the broker made a document, for one purpose and for whom it is bound to:
// EXPIRES.MAC.
func (w *Web) seal(purpose, bound string, document []byte, life time.Duration) string {
	expires := strconv.FormatInt(w.options.Now().Add(life).Unix(), 10)
	return expires + "." + w.mac(expires, purpose, bound, document)
}

func (w *Web) mac(expires, purpose, bound string, document []byte) string {
	h := hmac.New(sha256.New, w.options.Secret)
	fmt.Fprintf(h, "%s\x00%s\x00%d\x00%s\x00", expires, purpose, len(bound), bound)
	h.Write(document)
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

// unseal fails with Denied unless the broker made a document for this purpose and for whom it is bound to, a short time
// ago. It returns when the seal expires.
func (w *Web) unseal(seal, purpose, bound string, document []byte) (time.Time, error) {
	refuse := failure.New(failure.Denied, "cannot accept the answer: it is to no question of this page, or came too late").
		WithHint("load the page again and try again")
	expires, mac, _ := strings.Cut(seal, ".")
	if !hmac.Equal([]byte(mac), []byte(w.mac(expires, purpose, bound, document))) {
		return time.Time{}, refuse
	}
	seconds, err := strconv.ParseInt(expires, 10, 64)
	until := time.Unix(seconds, 0)
	if err != nil || !w.options.Now().Before(until) {
		return time.Time{}, refuse
	}
	return until, nil
}

// once fails when a document was used before, at whichever replica: who has recorded an answer would sign in by it, or
// use an invitation, at another one. The log would refuse an approval that it has already, but no sign-in is in it.
func (w *Web) once(ctx context.Context, document []byte, until time.Time) error {
	first, err := w.options.Uses.Once(ctx, sha256.Sum256(document), until)
	if err != nil || first {
		return err
	}
	return failure.New(failure.Conflict, "the answer was used before").WithHint("load the page again and try again")
}
