package audit

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"slices"
	"sort"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

const (
	maxAbsent   = 1000      // signatures that are listed although the repository does not have them
	maxFollowed = 1_000_000 // requests for the repository, and intents without an outcome
	maxID       = 128       // bytes of the ID of a request that is followed
)

// hash is a SHA-256.
type hash [32]byte

// parseHash reads sha256:HEX.
func parseHash(text string) (h hash, ok bool) {
	digits, ok := strings.CutPrefix(text, "sha256:")
	if !ok || len(digits) != 2*len(h) {
		return h, false
	}
	_, err := hex.Decode(h[:], []byte(digits))
	return h, err == nil
}

// signature is a signature in the repository.
type signature struct {
	payload, value hash // of the bytes that were signed, and of the signature value
	state          state
	Incident
}

// state is what the log has of a signature.
type state uint8

const (
	unknown  state = iota // nothing
	intended              // an intent to sign these bytes, without a signature that was released
	another               // another signature of these bytes
	logged
	ambiguous // whatever the log has: the envelope can be read in several ways
)

var reasons = map[state]string{
	unknown:  "the log has nothing about it",
	intended: "the log has an intent to sign these bytes, and the broker has released no signature of them",
	another:  "the log has another signature of the same bytes",

	ambiguous: "its envelope can be read in several ways, so that the log cannot be searched for it",
}

func compareSignatures(a, b signature) int {
	return cmp.Or(bytes.Compare(a.payload[:], b.payload[:]), bytes.Compare(a.value[:], b.value[:]))
}

// comparison compares the signatures of a repository with the entries of a log.
type comparison struct {
	found      []signature // sorted by payload and value
	repository string
	asked      map[string]bool   // requests for this repository
	open       map[string]string // digests of images of this repository that it is about to sign, by request
	missing    []Absent
	count      int // of those that are missing
}

// each takes the next entry of the log.
func (c *comparison) each(index int64, event translog.Event, data []byte) error {
	switch event.Type {
	case entry.Requested, entry.Intended, entry.Signed, entry.Failed, entry.Lost, entry.Ended:
	default:
		return nil
	}
	e, err := entry.Decode(data)
	if err != nil {
		return err
	}
	followed := len(e.Request) <= maxID
	switch e.Type {
	case entry.Requested:
		if followed && e.Repository == c.repository && len(c.asked) < maxFollowed {
			c.asked[e.Request] = true
		}
	case entry.Intended:
		if followed && (e.Repository == c.repository || c.asked[e.Request]) && len(c.open) < maxFollowed {
			c.open[e.Request] = e.Digest
		}
		c.mark(e, intended)
	case entry.Failed, entry.Lost:
		delete(c.open, e.Request)
	case entry.Ended:
		delete(c.asked, e.Request)
	case entry.Signed:
		image, ours := c.open[e.Request]
		delete(c.open, e.Request)
		if !c.mark(e, logged) && ours {
			c.absent(index, e, image)
		}
	}
	return nil
}

// mark notes what the log has of the signatures of some bytes. It reports whether the repository has the signature.
func (c *comparison) mark(e *entry.Event, as state) (exists bool) {
	payload, ok := parseHash(e.Payload)
	if !ok {
		return false
	}
	value, _ := parseHash(e.Signature)
	from := sort.Search(len(c.found), func(i int) bool { return bytes.Compare(c.found[i].payload[:], payload[:]) >= 0 })
	for i := from; i < len(c.found) && c.found[i].payload == payload; i++ {
		is := as
		if as == logged && c.found[i].value != value {
			is = another
		}
		exists = exists || is == logged
		c.found[i].state = max(c.found[i].state, is)
	}
	return exists
}

func (c *comparison) absent(index int64, e *entry.Event, image string) {
	c.count++
	if len(c.missing) < maxAbsent {
		c.missing = append(c.missing, Absent{Index: index, Time: e.At(), Key: e.Key, Image: image})
	}
}

// add adds the incidents among the signatures.
func (r *Report) add(found []signature) {
	for _, s := range found {
		if s.state != logged {
			s.Reason = reasons[s.state]
			r.Incidents = append(r.Incidents, s.Incident)
		}
	}
	slices.SortFunc(r.Incidents, func(a, b Incident) int {
		return cmp.Or(cmp.Compare(a.Tag, b.Tag), cmp.Compare(a.Image, b.Image), cmp.Compare(a.Signature, b.Signature))
	})
}
