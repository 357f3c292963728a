package translog

import (
	"bytes"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// newWitness returns a witness and its private key.
func newWitness(t testing.TB, name string) (*Witness, ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w, err := ParseWitness(verifierKey(name, keyID(name, kindCosignature, public), kindCosignature, public))
	if err != nil {
		t.Fatal(err)
	}
	return w, private
}

// cosign returns the line of a cosignature.
func cosign(w *Witness, private ed25519.PrivateKey, text string, seconds uint64) string {
	data := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, w.id), seconds)
	data = append(data, ed25519.Sign(private, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", seconds, text))...)
	return fmt.Sprintf("— %s %s\n", w.name, base64.StdEncoding.EncodeToString(data))
}

// signedBy returns a checkpoint, and it as a note that a log signed.
func signedBy(t testing.TB) (Checkpoint, string, *Verifier) {
	t.Helper()
	key, v := newKey(t, elliptic.P256())
	tree, _ := (&Tree{}).Append(numbered(0, 1000))
	c := Checkpoint{origin, tree.Size(), tree.Root()}
	data, err := c.Sign(key)
	if err != nil {
		t.Fatal(err)
	}
	return c, string(data), v
}

// TestWitnessOfOthers cosigns a checkpoint with the library of others, and verifies it; and the other way round.
func TestWitnessOfOthers(t *testing.T) {
	t.Parallel()
	skey, vkey, err := note.GenerateKey(rand.Reader, "witness.example.com/w1")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := formats.NewSignerForCosignatureV1(skey)
	if err != nil {
		t.Fatal(err)
	}
	vkey4, err := formats.VKeyToCosignatureV1(vkey)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := ParseWitness(vkey)
	if err != nil {
		t.Fatal(err)
	}
	w, err := ParseWitness(vkey4)
	if err != nil || w.String() != vkey4 || plain.String() != vkey4 || w.KeyHash() != signer.KeyHash() {
		t.Fatalf("%v: %s, %s instead of %s", err, w, plain, vkey4)
	}
	c, data, v := signedBy(t)
	opened, err := note.Open([]byte(data), note.VerifierList(v))
	if err != nil {
		t.Fatal(err)
	}
	cosigned, err := note.Sign(opened, signer)
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range [][]*Witness{{w}, {plain}, {plain, w}} {
		all, err := Cosigned(cosigned, list)
		if err != nil || len(all) != 1 || all[0].Witness != w.name || all[0].Time.IsZero() {
			t.Errorf("%v: %v", all, err)
		}
	}
	if again, err := Open(cosigned, []*Verifier{v}); err != nil || again != c {
		t.Errorf("the checkpoint does not verify with a cosignature beside the log's signature: %v", err)
	}
	own, private := newWitness(t, "witness.example.com/w2")
	verifier, err := formats.NewVerifierForCosignatureV1(own.String())
	if err != nil {
		t.Fatal(err)
	}
	both := string(cosigned) + cosign(own, private, c.text(), 1e9)
	if n, err := note.Open([]byte(both), note.VerifierList(verifier, w, v)); err != nil || len(n.Sigs) != 3 {
		t.Errorf("others do not verify the cosignature: %v", err)
	}
	if all, err := Cosigned([]byte(both), []*Witness{own, w}); err != nil || len(all) != 2 || all[0].Witness != own.name ||
		!all[0].Time.Equal(time.Unix(1e9, 0)) {
		t.Errorf("%v: %v", all, err)
	}
}

// vector is a checkpoint of an Ed25519 key that litewitness v0.9.0 (filippo.io/torchwood) has cosigned.
const (
	vectorLog     = "broker.example.com/log+ee33d24e+Ad5RxQcpVsp4xHFSubhaCyBwkifH8enKqFTgtFtecOP6"
	vectorWitness = "lite.example.com+77e42a54+BAGB0GahOn38U3bNJssNsS/LW98H3wmOFB/HFAexvKEP"
	vector        = `broker.example.com/log
7
mMl/C6MXXNCLAx3QhLncTmSbZNGijm6mlGRlAxc6tYc=

— broker.example.com/log 7jPSTlin9aIA5HF8rQ5mTxmYGyPy/8a3J74J+f5wKZFgnurxkwYlEMOYGd6vmqYOSe9Livja9jQaOo8EaI+d+IkhTAM=
— lite.example.com d+QqVAAAAABrCW6cSAOwMl40O4QS6t6/rVpdOIp9pF04urTwKmxUuFtaNXgRfzSBilXTiyP+b3ykWxIk5sRf7APsHN9zHx+txHLiCg==
`
)

// TestCosignedVector verifies the vector, and none of its variants with another byte.
func TestCosignedVector(t *testing.T) {
	t.Parallel()
	w, err := ParseWitness(vectorWitness)
	if err != nil {
		t.Fatal(err)
	}
	v, err := ParseVerifier(vectorLog)
	if err != nil {
		t.Fatal(err)
	}
	all, err := Cosigned([]byte(vector), []*Witness{w})
	if err != nil || len(all) != 1 || all[0].Witness != "lite.example.com" || all[0].Time.Unix() != 1795780252 {
		t.Fatalf("%v: %v", all, err)
	}
	if c, err := Open([]byte(vector), []*Verifier{v}); err != nil || c.Size != 7 {
		t.Fatalf("%v: %v", c, err)
	}
	for i := range vector {
		changed := []byte(vector)
		changed[i] ^= 1
		all, err := Cosigned(changed, []*Witness{w})
		ofLog := strings.HasPrefix(vector[strings.LastIndex(vector[:i+1], "\n")+1:], "— broker.example.com/log ")
		if err == nil && len(all) > 0 && !ofLog { // which Open verifies
			t.Errorf("byte %d can be changed: %s", i, changed)
		}
	}
}

// TestCosigned counts cosignatures of a checkpoint.
func TestCosigned(t *testing.T) {
	t.Parallel()
	c, data, _ := signedBy(t)
	w, key := newWitness(t, "witness.example.com/w1")
	other, otherKey := newWitness(t, "witness.example.com/w2")
	twin := &Witness{"witness.example.com/twin", w.key, keyID("witness.example.com/twin", kindCosignature, w.key)}
	wrong := cosign(w, otherKey, c.text(), 5)
	all := []*Witness{w, twin, other}
	for name, test := range map[string]struct {
		note string
		want []string
		kind failure.Kind
	}{
		"none":      {data, nil, 0},
		"one":       {data + cosign(w, key, c.text(), 5), []string{w.name}, 0},
		"one twice": {data + cosign(w, key, c.text(), 5) + cosign(w, key, c.text(), 6), []string{w.name}, 0},
		"one key":   {data + cosign(w, key, c.text(), 5) + cosign(twin, key, c.text(), 6), []string{twin.name}, 0},
		"two": {data + cosign(other, otherKey, c.text(), 5) + cosign(w, key, c.text(), 5), []string{w.name,
			other.name}, 0},
		"unknown":          {data + strings.Replace(wrong, w.name, "stranger", 1), nil, 0},
		"wrong key":        {data + wrong, nil, failure.Denied},
		"after the end":    {data + cosign(w, key, c.text(), maxTime+1), nil, failure.Denied},
		"huge time":        {data + cosign(w, key, c.text(), 1<<63), nil, failure.Denied},
		"another text":     {data + cosign(w, key, c.text()+"extension\n", 5), nil, failure.Denied},
		"line without end": {strings.TrimSuffix(data+cosign(w, key, c.text(), 5), "\n"), nil, failure.Invalid},
		"not base64":       {data + "— a !!!!\n", nil, failure.Invalid},
		"no signature":     {c.text() + "\n", nil, failure.Invalid},
		"no empty line":    {c.text(), nil, failure.Invalid},
		"not a checkpoint": {"a\n\n" + cosign(w, key, "a\n", 5), nil, failure.Invalid},
		"too many": {data + strings.Repeat(cosign(w, key, c.text(), 5), maxSignatures), nil,
			failure.Invalid},
		"too long": {data + strings.Repeat("x", maxCheckpoint), nil, failure.Invalid},
	} {
		got, err := Cosigned([]byte(test.note), all)
		var names []string
		for _, one := range got {
			names = append(names, one.Witness)
		}
		if strings.Join(names, " ") != strings.Join(test.want, " ") || (err != nil) != (test.kind != 0) ||
			err != nil && !failure.Is(err, test.kind) {
			t.Errorf("%s: %v: %v", name, names, err)
		}
	}
	newest, err := Cosigned([]byte(data+cosign(w, key, c.text(), 7)+cosign(w, key, c.text(), 6)), all)
	if err != nil || len(newest) != 1 || newest[0].Time.Unix() != 7 {
		t.Errorf("the newest cosignature does not count: %v: %v", newest, err)
	}
}

// TestParseWitness refuses verifier keys that are not those of witnesses.
func TestParseWitness(t *testing.T) {
	t.Parallel()
	w, key := newWitness(t, "witness.example.com/w1")
	_, v := newKey(t, elliptic.P256())
	vkey := func(name string, kind byte, key []byte) string {
		return verifierKey(name, keyID(name, kind, key), kind, key)
	}
	for name, bad := range map[string]string{
		"empty":       "",
		"two parts":   "a+00000000",
		"identifier":  strings.Replace(w.String(), fmt.Sprintf("%08x", w.id), "00000000", 1),
		"capitals":    strings.Replace(w.String(), fmt.Sprintf("+%08x+", w.id), fmt.Sprintf("+%08X+", w.id|0xa0000000), 1),
		"log's key":   v.String(),
		"no name":     vkey("", kindCosignature, w.key),
		"control":     vkey("a\x01b", kindCosignature, w.key),
		"space":       vkey("a\u00a0b", kindCosignature, w.key),
		"short":       vkey("a", kindCosignature, w.key[:31]),
		"private key": vkey("a", kindCosignature, key),
		"another":     vkey("a", 5, w.key),
		"long":        vkey("a", kindCosignature, bytes.Repeat([]byte{1}, 4096)),
	} {
		if _, err := ParseWitness(bad); !failure.Is(err, failure.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ParseWitness(vkey("a", kindMLDSA44, make([]byte, 1312))); !failure.Is(err, failure.Unsupported) {
		t.Errorf("ML-DSA-44: %v", err)
	}
}

// FuzzCosigned has no cosignature that golang.org/x/mod/sumdb/note does not verify.
func FuzzCosigned(f *testing.F) {
	w, err := ParseWitness(vectorWitness)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(vector))
	f.Add([]byte(vector + strings.Repeat("— lite.example.com AAAAAAA=\n", 3)))
	f.Add([]byte(strings.Replace(vector, "\n\n", "\nextension\n\n", 1)))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := Cosigned(data, []*Witness{w, w})
		if err != nil || len(all) == 0 {
			return
		}
		opened, err := note.Open(data, note.VerifierList(w))
		if err != nil || len(opened.Sigs) != 1 || len(all) != 1 {
			t.Errorf("%d cosignatures: %v\n%q", len(all), err, data)
		}
	})
}
