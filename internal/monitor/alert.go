package monitor

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"
)

// Classes of alerts.
const (
	Fork        = "fork"        // two signed checkpoints that are not of one log
	Damaged     = "damaged"     // the checkpoint is not signed by the log's key, or the files do not fit it
	Stale       = "stale"       // no new checkpoint, or no answer, for too long
	Malformed   = "malformed"   // an entry that no broker logs
	Clock       = "clock"       // times that go backwards, or are in the future
	Approvals   = "approvals"   // a use of a key with too few approvals
	BreakGlass  = "break-glass" // a use by a rule for emergencies
	Unlogged    = "unlogged"    // a signature whose request, intent or policy is not in the log
	Rejected    = "rejected"    // a use after its request was rejected or ended
	Spent       = "spent"       // a use beyond those that its request allows, or of another artifact
	BlockedKey  = "blocked-key" // a use of a key that is blocked
	OutsideHour = "hours"       // a use outside the hours of the key
	UnlistedKey = "key"         // a use of a key that the config does not list
	Policy      = "policy"      // a policy that the config does not list comes into force
	ConfigSet   = "config"      // another config of the broker
	Credentials = "credentials" // a credential was enrolled or removed, or a person invited
	Blocks      = "blocks"      // a key was blocked or unblocked
	Epoch       = "epoch"       // the log begins a new epoch, or entries are void
)

// Classes are all classes of alerts.
var Classes = []string{Fork, Damaged, Stale, Malformed, Clock, Approvals, BreakGlass, Unlogged, Rejected, Spent,
	BlockedKey, OutsideHour, UnlistedKey, Policy, ConfigSet, Credentials, Blocks, Epoch}

// Alert is something in a log, or about it, that people have to look at. Texts of the log in it are clean and bounded.
type Alert struct {
	ID       string     `json:"id"` // the same when the same is told again
	Class    string     `json:"class"`
	Log      string     `json:"log"` // origin
	What     string     `json:"what"`
	Index    *int64     `json:"index,omitempty"` // of the entry
	Time     *time.Time `json:"time,omitempty"`  // of the entry, as the log says
	Type     string     `json:"type,omitempty"`  // of the entry
	Key      string     `json:"key,omitempty"`
	Request  string     `json:"request,omitempty"`
	Digest   string     `json:"digest,omitempty"`   // of the artifact, the policy, the config or the credential
	Evidence []string   `json:"evidence,omitempty"` // files on the monitor's machine
	Found    time.Time  `json:"found"`              // by the monitor's clock
}

// identify gives an alert the ID that follows from what it is about.
func (a *Alert) identify(about ...any) {
	hash := sha256.New()
	for _, part := range append([]any{a.Log, a.Class}, about...) {
		fmt.Fprintf(hash, "%d:%v", len(fmt.Sprint(part)), part)
	}
	a.ID = "alert_" + hex.EncodeToString(hash.Sum(nil)[:16])
}

// message returns the body of a webhook.
func (a *Alert) message() []byte {
	data, err := json.Marshal(struct {
		Type      string    `json:"type"`
		Timestamp time.Time `json:"timestamp"`
		Data      *Alert    `json:"data"`
	}{"log.alert", a.Found, a})
	if err != nil {
		panic(err) // every field can be encoded
	}
	return data
}

// maxText is the length of the longest text of the log that is shown, in bytes.
const maxText = 128

// clean returns a text of the log to be shown, in one line: without characters that cannot be seen or that change how
// others are shown.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, text)
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return text
}

// mark returns 32 characters that stand for a text of the log in what is kept.
func mark(text string) string {
	hash := sha256.Sum256([]byte(text))
	return hex.EncodeToString(hash[:16])
}
