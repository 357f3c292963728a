package worker

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
)

// FuzzReadFrame reads frames of a stranger: it returns those that it reads as they were, and takes no more memory than
// was sent.
func FuzzReadFrame(f *testing.F) {
	f.Add(appendFrame(nil, 1, msgAnswered, []byte("body")))
	f.Add(appendFrame(nil, 1<<63, msgFailed))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		in := bytes.NewReader(data)
		var again []byte
		for {
			got, err := readFrame(in)
			if err != nil {
				break
			}
			if cap(got.body) > len(data)+2*growthLimit {
				t.Fatalf("%d bytes of memory for %d", cap(got.body), len(data))
			}
			again = appendFrame(again, got.call, got.kind, got.body)
		}
		if !bytes.HasPrefix(data, again) {
			t.Errorf("%x was read from %x", again, data)
		}
	})
}

// FuzzAnswers gives the parent what the process of a module may send. Each call ends, with a failure of ours at worst.
func FuzzAnswers(f *testing.F) {
	f.Add(uint8(msgAnswered), []byte(`{"Store":1,"Token":{"label":"signing"}}`))
	f.Add(uint8(msgAnswered), []byte(`{"Keys":[{"Key":1,"Public":"AAAA"}],"Chain":["AAAA"],"Public":"AAAA"}`))
	f.Add(uint8(msgFailed), []byte(`{"Kind":3,"What":"refused","CKR":"CKR_PIN_INCORRECT"}`))
	f.Add(uint8(msgWantPIN), []byte(`{"Token":"pkcs11:token=signing","Name":"signing"}`))
	f.Add(uint8(msgLoggedIn), []byte(`{"Kind":0,"What":"CKR"}`))
	f.Add(uint8(msgStarted), []byte(greeting))
	f.Add(uint8(99), []byte(nil))
	f.Fuzz(func(t *testing.T, k uint8, body []byte) {
		b := New(keystoretest.New())
		theirs, p := pipeProcess(t, b)
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		c := &call{
			kind: opFindKey, ctx: t.Context(), owner: owner{settings: &config.Settings{Timeout: time.Minute}},
			result: make(chan callResult, 1),
		}
		number, err := p.send(c, p.shared.out)
		if err != nil {
			t.Fatal(err)
		}
		for range maxPINs + 2 {
			_ = p.receive(frame{call: number, kind: kind(k), body: body})
		}
		_ = p.receive(frame{call: number, kind: msgAnswered, body: body})
		r := <-c.result
		if r.err == nil {
			results, err := decode(r.body)
			if err == nil {
				_, err = results.info()
			}
			if err == nil {
				_, err = decodeCertificates(results.Chain)
			}
			_ = err
		}
		p.timer.Stop()
		close(p.gone)
		b.pins.forget()
	})
}

// pipeProcess returns a process that is not one, and the other end of its shared connection.
func pipeProcess(t testing.TB, b *Backend) (net.Conn, *process) {
	t.Helper()
	pair, err := socketPair(1)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := newLane(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := net.FileConn(pair[1])
	if err != nil {
		t.Fatal(err)
	}
	pair[1].Close()
	t.Cleanup(func() { ours.conn.Close(); theirs.Close() })
	p := &process{
		module: &module{backend: b, path: keystoretest.Path}, shared: ours, calls: map[uint64]*call{},
		greeted: make(chan struct{}), gone: make(chan struct{}), reaped: true,
	}
	p.alive.Store(true)
	return theirs, p
}

// FuzzCalls gives the process of a module what its parent may send. Each call of an operation has one answer.
func FuzzCalls(f *testing.F) {
	for k := opOpenStore; k < operations; k++ {
		f.Add(uint8(k), encode(arguments{Store: 1, Key: 2, Settings: &config.Settings{}, Name: &config.URI{}}))
		f.Add(uint8(k), use{key: 2, hash: 5}.head())
		f.Add(uint8(k), []byte("{}"))
	}
	f.Fuzz(func(t *testing.T, k uint8, body []byte) {
		if kind(k) < opOpenStore || kind(k) >= operations {
			return
		}
		m := keystoretest.New("signing")
		answers := &recorder{}
		s := &server{
			backend: m, calls: map[uint64]*served{}, stores: map[uint64]keystore.Store{}, keys: map[uint64]heldKey{},
		}
		store, err := m.Open(t.Context(), &config.Settings{Key: config.URI{Token: "signing"}, PIN: keystoretest.PIN})
		if err != nil {
			t.Fatal(err)
		}
		s.addStore(store)
		s.begin(context.Background(), frame{call: 7, kind: kind(k), body: body}, answers).run()
		if answers.count != 1 {
			t.Errorf("%d answers", answers.count)
		}
		if answers.kind == msgFailed && decodeFailure(answers.body).What == "" {
			t.Errorf("a failure without a message: %s", answers.body)
		}
	})
}

type recorder struct {
	count int
	kind  kind
	body  []byte
}

func (r *recorder) send(_ uint64, k kind, parts ...[]byte) error {
	r.count++
	r.kind, r.body = k, bytes.Join(parts, nil)
	return nil
}
