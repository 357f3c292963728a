// Package witnesstest is a witness for tests that follows C2SP tlog-witness to the letter. It shares no code with
// package translog.
package witnesstest

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Witness is a witness that serves.
type Witness struct {
	Server *httptest.Server
	Key    string // verifier key of type 4

	signer *formats.Signer
	mu     sync.Mutex
	logs   map[string]note.Verifier // by origin
	heads  map[string]head
	asked  int
	answer http.HandlerFunc
}

type head struct {
	size int64
	root tlog.Hash
}

// New starts a witness for a test. It knows no log.
func New(t testing.TB, name string) *Witness {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	w := &Witness{logs: map[string]note.Verifier{}, heads: map[string]head{}}
	if w.signer, err = formats.NewSignerForCosignatureV1(skey); err != nil {
		t.Fatal(err)
	}
	if w.Key, err = formats.VKeyToCosignatureV1(vkey); err != nil {
		t.Fatal(err)
	}
	w.Server = httptest.NewServer(w)
	t.Cleanup(w.Server.Close)
	return w
}

// Add has the witness cosign checkpoints of the log with a verifier key.
func (w *Witness) Add(t testing.TB, vkey string) {
	t.Helper()
	v, err := formats.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.logs[v.Name()] = v
}

// Answer has a function answer all requests, until it is nil.
func (w *Witness) Answer(answer http.HandlerFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = answer
}

// Asked returns the number of requests.
func (w *Witness) Asked() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked
}

// Size returns the size of the newest checkpoint of a log that was cosigned.
func (w *Witness) Size(origin string) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.heads[origin].size
}

// ServeHTTP answers a request.
func (w *Witness) ServeHTTP(to http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	w.asked++
	answer := w.answer
	w.mu.Unlock()
	if answer != nil {
		answer(to, r)
		return
	}
	if r.Method != http.MethodPost || r.URL.Path != "/add-checkpoint" {
		http.NotFound(to, r)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(to, r.Body, 10<<10)) // as much as litewitness takes
	if err != nil {
		http.Error(to, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.add(to, body)
}

// parse returns the parts of a request: the old size, the proof and the checkpoint.
func parse(body []byte) (old int64, proof tlog.TreeProof, signed []byte, err error) {
	header, signed, found := bytes.Cut(body, []byte("\n\n"))
	lines := strings.Split(string(header), "\n")
	size, begins := strings.CutPrefix(lines[0], "old ")
	old, err = strconv.ParseInt(size, 10, 64)
	if !found || !begins || err != nil || old < 0 || strconv.FormatInt(old, 10) != size || len(lines) > 64 {
		return 0, nil, nil, fmt.Errorf("the request is malformed")
	}
	for _, line := range lines[1:] {
		hash, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil || len(hash) != tlog.HashSize {
			return 0, nil, nil, fmt.Errorf("the proof is malformed")
		}
		proof = append(proof, tlog.Hash(hash))
	}
	return old, proof, signed, nil
}

// add answers a request to add a checkpoint.
func (w *Witness) add(to http.ResponseWriter, body []byte) {
	fail := func(status int, text string) { http.Error(to, text, status) }
	old, proof, signed, err := parse(body)
	if err != nil {
		fail(http.StatusBadRequest, err.Error())
		return
	}
	origin, _, _ := strings.Cut(string(signed), "\n")
	verifier := w.logs[origin]
	if verifier == nil {
		fail(http.StatusNotFound, "unknown log")
		return
	}
	opened, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		fail(http.StatusForbidden, "no signature of a known key")
		return
	}
	lines := strings.Split(opened.Text, "\n")
	size, err1 := strconv.ParseInt(lines[1], 10, 64)
	root, err2 := tlog.ParseHash(lines[2])
	if err1 != nil || err2 != nil || old > size {
		fail(http.StatusBadRequest, "the checkpoint is malformed, or smaller than the old size")
		return
	}
	known := w.heads[origin]
	conflict := func() {
		to.Header().Set("Content-Type", "text/x.tlog.size")
		to.WriteHeader(http.StatusConflict)
		fmt.Fprintf(to, "%d\n", known.size)
	}
	switch {
	case old != known.size, old == size && root != known.root:
		conflict()
		return
	case old == 0 && len(proof) > 0, old == size && len(proof) > 0,
		0 < old && old < size && tlog.CheckTree(proof, size, root, old, known.root) != nil:
		fail(http.StatusUnprocessableEntity, "the consistency proof does not verify")
		return
	}
	cosigned, err := note.Sign(&note.Note{Text: opened.Text}, w.signer)
	if err != nil {
		fail(http.StatusInternalServerError, err.Error())
		return
	}
	w.heads[origin] = head{size, root}
	_, _ = to.Write(cosigned[len(opened.Text)+1:])
}
