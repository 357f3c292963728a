package translog

import (
	"context"
	"crypto"
	"crypto/elliptic"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/translog/witnesstest"
)

// watched is a log that a witness knows.
type watched struct {
	t       *testing.T
	key     crypto.Signer
	v       *Verifier
	tree    *Tree
	tiles   map[tileKey][]byte
	witness *witnesstest.Witness
	client  *WitnessClient
}

func newWatched(t *testing.T) *watched {
	t.Helper()
	key, v := newKey(t, elliptic.P256())
	w := &watched{t: t, key: key, v: v, tree: &Tree{}, tiles: map[tileKey][]byte{},
		witness: witnesstest.New(t, "witness.example.com/w1")}
	w.witness.Add(t, v.String())
	w.client = w.newClient()
	return w
}

func (w *watched) newClient() *WitnessClient {
	w.t.Helper()
	named, err := ParseWitness(w.witness.Key)
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := NewWitnessClient(named, w.witness.Server.URL)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// grow appends entries, and returns the signed checkpoint.
func (w *watched) grow(entries [][]byte) []byte {
	w.t.Helper()
	grown, changed := w.tree.Append(entries)
	for _, tile := range changed {
		w.tiles[tileKey{tile.Level, tile.Index}] = tile.Hashes
	}
	w.tree = grown
	signed, err := Checkpoint{origin, grown.Size(), grown.Root()}.Sign(w.key)
	if err != nil {
		w.t.Fatal(err)
	}
	return signed
}

func (w *watched) read(_ context.Context, level int, index int64) ([]byte, error) {
	return w.tiles[tileKey{level, index}], nil
}

// cosign gets a cosignature and verifies it.
func (w *watched) cosign(c *WitnessClient, signed []byte) {
	w.t.Helper()
	cosignature, err := c.Cosign(w.t.Context(), signed, w.read)
	if err != nil {
		w.t.Fatal(err)
	}
	merged := Merge(signed, []Cosignature{cosignature})
	all, err := Cosigned(merged, []*Witness{c.Witness()})
	if err != nil || len(all) != 1 || all[0] != cosignature {
		w.t.Fatalf("%v: %v", all, err)
	}
	if _, err := Open(merged, []*Verifier{w.v}); err != nil {
		w.t.Fatal(err)
	}
}

// TestWitnessClient has a witness cosign a log that grows, also when the client does not know what it has cosigned.
func TestWitnessClient(t *testing.T) {
	t.Parallel()
	w := newWatched(t)
	for size, asked := int64(0), 0; size < 1000; size = w.tree.Size() {
		signed := w.grow(numbered(size, size+1+size%97*3))
		w.cosign(w.client, signed)
		if asked++; w.witness.Asked() != asked {
			t.Fatalf("%d requests for %d checkpoints", w.witness.Asked(), asked)
		}
	}
	signed := w.grow(nil)
	w.cosign(w.client, signed) // the same again
	w.cosign(w.newClient(), signed)
	w.cosign(w.newClient(), w.grow(numbered(5000, 5010)))
	if size := w.witness.Size(origin); size != w.tree.Size() {
		t.Errorf("the witness has cosigned %d of %d entries", size, w.tree.Size())
	}
}

// TestWitnessRefuses has a witness refuse logs that it does not know, that were rewritten, or that lost entries.
func TestWitnessRefuses(t *testing.T) {
	t.Parallel()
	w := newWatched(t)
	w.cosign(w.client, w.grow(numbered(0, 100)))
	rewritten, lost, stranger := newWatched(t), newWatched(t), newWatched(t)
	for name, test := range map[string]struct {
		log     *watched
		entries [][]byte
		kind    failure.Kind
	}{
		"rewritten":           {rewritten, numbered(50, 200), failure.Conflict},
		"rewritten, no other": {newWatched(t), numbered(50, 150), failure.Conflict},
		"lost":                {lost, numbered(0, 60), failure.Conflict},
		"another key":         {stranger, numbered(0, 200), failure.Denied},
	} {
		if name != "another key" {
			test.log.key = w.key
		}
		_, err := w.newClient().Cosign(t.Context(), test.log.grow(test.entries), test.log.read)
		if !failure.Is(err, test.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
	signed, err := Checkpoint{"other.example.com/log", w.tree.Size(), w.tree.Root()}.Sign(w.key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.newClient().Cosign(t.Context(), signed, w.read); !failure.Is(err, failure.NotFound) {
		t.Errorf("unknown log: %v", err)
	}
}

// TestHostileWitness gets answers that are wrong in each way, and then a right one.
func TestHostileWitness(t *testing.T) {
	t.Parallel()
	w := newWatched(t)
	signed := w.grow(numbered(0, 300))
	text, _, _ := strings.Cut(string(signed), "\n\n")
	named, key := newWitness(t, "witness.example.com/other")
	status := func(code int, media, body string) http.HandlerFunc {
		return func(to http.ResponseWriter, _ *http.Request) {
			to.Header().Set("Content-Type", media)
			to.Header().Set("Location", "/elsewhere")
			to.WriteHeader(code)
			_, _ = to.Write([]byte(body))
		}
	}
	const plain, size = "text/plain", "text/x.tlog.size"
	other := cosign(named, key, text+"\n", 5)
	forged := cosign(&Witness{w.client.witness.name, named.key, w.client.witness.id}, key, text+"\n", 5)
	for name, test := range map[string]struct {
		answer   http.HandlerFunc
		kind     failure.Kind
		requests int
	}{
		"nothing":           {status(200, plain, ""), failure.Invalid, 1},
		"of another key":    {status(200, plain, other), failure.Denied, 1},
		"forged":            {status(200, plain, forged), failure.Denied, 1},
		"not a line":        {status(200, plain, "<html>\n"), failure.Invalid, 1},
		"many":              {status(200, plain, strings.Repeat(other, 101)), failure.Invalid, 1},
		"long":              {status(200, plain, strings.Repeat("x", maxAnswer+1)), failure.Invalid, 1},
		"text":              {status(200, plain, "\n\n"+other), failure.Invalid, 1},
		"other sizes":       {status(409, size, "7\n"), failure.Conflict, 2},
		"too large a size":  {status(409, size, "301\n"), failure.Conflict, 1},
		"not a size":        {status(409, size, "-1\n"), failure.Conflict, 1},
		"size with zeros":   {status(409, size, "07\n"), failure.Conflict, 1},
		"size without end":  {status(409, size, "7"), failure.Conflict, 1},
		"size of a media":   {status(409, plain, "7\n"), failure.Conflict, 1},
		"redirect":          {status(302, plain, ""), failure.Invalid, 1},
		"redirect with 307": {status(307, plain, ""), failure.Invalid, 1},
		"bad request":       {status(400, plain, "no"), failure.Invalid, 1},
		"unprocessable":     {status(422, plain, "no"), failure.Conflict, 1},
		"too many requests": {status(429, plain, "no"), failure.Unavailable, 1},
		"server error":      {status(500, plain, "no"), failure.Unavailable, 1},
		"broken off": {func(to http.ResponseWriter, _ *http.Request) {
			to.Header().Set("Content-Length", "1000")
			fmt.Fprint(to, other)
		}, failure.Unavailable, 1},
	} {
		before := w.witness.Asked()
		w.witness.Answer(test.answer)
		_, err := w.newClient().Cosign(t.Context(), signed, w.read)
		if !failure.Is(err, test.kind) || !strings.Contains(err.Error(), "witness.example.com/w1") {
			t.Errorf("%s: %v", name, err)
		}
		if asked := w.witness.Asked() - before; asked != test.requests {
			t.Errorf("%s: %d requests instead of %d", name, asked, test.requests)
		}
	}
	w.witness.Answer(status(409, size, "7\n"))
	if _, err := w.client.Cosign(t.Context(), signed, w.read); !failure.Is(err, failure.Conflict) {
		t.Error(err)
	}
	w.witness.Answer(nil)
	w.cosign(w.client, signed)
	w.witness.Server.Close()
	if _, err := w.client.Cosign(t.Context(), signed, w.read); !failure.Is(err, failure.Unavailable) {
		t.Errorf("a witness that is down: %v", err)
	}
}

// TestWitnessURL refuses URLs to which nothing is sent.
func TestWitnessURL(t *testing.T) {
	t.Parallel()
	w, _ := newWitness(t, "witness.example.com/w1")
	for _, good := range []string{"https://witness.example.com", "https://witness.example.com/a/", "http://127.0.0.1:80",
		"http://localhost", "http://[::1]:80/x"} {
		if c, err := NewWitnessClient(w, good); err != nil || !strings.HasSuffix(c.url, "/add-checkpoint") ||
			strings.HasSuffix(c.url, "//add-checkpoint") {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "witness.example.com", "http://witness.example.com", "https://", "ftp://localhost",
		"https://a:b@witness.example.com", "https://witness.example.com?a=b", "https://witness.example.com/#a",
		"https://witness.example.com/" + strings.Repeat("x", maxURL), "https://a\x00b"} {
		if _, err := NewWitnessClient(w, bad); !failure.Is(err, failure.Invalid) {
			t.Errorf("%.50q: %v", bad, err)
		}
	}
}
