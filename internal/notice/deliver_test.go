package notice

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// receiver is a webhook that verifies what it gets, and counts it by ID.
type receiver struct {
	t *testing.T
	sync.Mutex
	got    map[string]int
	bodies map[string]string
	order  []string
	answer func(w http.ResponseWriter, r *http.Request) // nil for 200
}

func newReceiver(t *testing.T) *receiver {
	return &receiver{t: t, got: map[string]int{}, bodies: map[string]string{}}
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		r.t.Error(err)
	}
	if request.URL.Path != "/hook" || request.Method != http.MethodPost {
		r.t.Errorf("%s %s", request.Method, request.URL)
	}
	id := request.Header.Get("webhook-id")
	mac := hmac.New(sha256.New, webhookKey)
	mac.Write([]byte(id + "." + request.Header.Get("webhook-timestamp") + "."))
	mac.Write(body)
	if request.Header.Get("webhook-signature") != "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)) {
		r.t.Errorf("signature %s", request.Header.Get("webhook-signature"))
	}
	r.Lock()
	r.got[id]++
	r.order = append(r.order, id)
	if was, again := r.bodies[id]; again && was != string(body) {
		r.t.Errorf("%s has another body", id)
	}
	r.bodies[id] = string(body)
	answer := r.answer
	r.Unlock()
	if answer != nil {
		answer(w, request)
	}
}

// count returns the number of requests.
func (r *receiver) count() int {
	r.Lock()
	defer r.Unlock()
	return len(r.order)
}

// status answers with a status.
func status(code int) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// TestWebhook delivers an event once, with its signature and what it says.
func TestWebhook(t *testing.T) {
	t.Parallel()
	r := newReceiver(t)
	f := newFixture(t, Config{Channels: []Channel{serve(t, "hook", r.ServeHTTP)}})
	f.queue(event("r1", broker.NoticePending))
	f.queue(event("r1", broker.NoticePending)) // the same event
	for range 3 {
		f.drain(t.Context(), f.channels[0])
	}
	f.queue(event("r1", broker.NoticePending))
	f.drain(t.Context(), f.channels[0])
	if r.count() != 1 || len(f.waiting()) != 0 {
		t.Fatalf("%d requests, %d rows", r.count(), len(f.waiting()))
	}
	var m map[string]any
	if err := json.Unmarshal([]byte(r.bodies[r.order[0]]), &m); err != nil {
		t.Fatal(err)
	}
	data := m["data"].(map[string]any)
	if m["type"] != "request.pending" || m["timestamp"] != "2026-03-04T05:06:07Z" || data["id"] != "r1" ||
		data["url"] != publicURL+"/requests/r1" || fmt.Sprint(data["people"]) != "[bob alice]" ||
		fmt.Sprint(data["needs"]) != "[map[action:use key:release rules:[map[groups:[map[group:release-managers lacking:2]"+
			" map[group:security lacking:1]] rule:release]]]]" {
		t.Errorf("%s", r.bodies[r.order[0]])
	}
}

// TestReceiverFails tries again after longer and longer times, until the receiver confirms. What it logs has no secret.
func TestReceiverFails(t *testing.T) { // alone: it replaces the log
	var logged bytes.Buffer
	old := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&logged, nil)))
	defer slog.SetDefault(old)
	arrived := make(chan struct{}, 10)
	for name, answer := range map[string]func(http.ResponseWriter, *http.Request){
		"500": status(500), "410": status(410), "204 after 429": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "120")
			w.WriteHeader(http.StatusTooManyRequests)
		},
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		},
		"close": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"hang": func(_ http.ResponseWriter, r *http.Request) {
			arrived <- struct{}{}
			<-r.Context().Done()
		},
	} {
		r := newReceiver(t)
		r.answer = answer
		f := newFixture(t, Config{Channels: []Channel{serve(t, "hook", r.ServeHTTP)}})
		f.queue(event("r1", broker.NoticePending))
		c := f.channels[0]
		if name == "hang" {
			c.sender = impatient{c.sender, arrived}
		}
		for attempt, want := range []time.Duration{0, time.Minute, 2 * time.Minute, 4 * time.Minute} {
			f.clock.advance(want - time.Millisecond)
			if f.drain(t.Context(), c); r.count() != attempt {
				t.Fatalf("%s: attempt %d came too early", name, attempt+1)
			}
			f.clock.advance(time.Millisecond)
			pause := f.drain(t.Context(), c)
			wantPause := time.Second << attempt
			switch name {
			case "410":
				wantPause = time.Hour
			case "204 after 429":
				wantPause = 2 * time.Minute
			}
			if r.count() != attempt+1 || pause != wantPause {
				t.Fatalf("%s: %d attempts, then a pause of %s", name, r.count(), pause)
			}
		}
		r.Lock()
		r.answer = status(204)
		r.Unlock()
		f.clock.advance(8 * time.Minute)
		f.drain(t.Context(), c)
		f.drain(t.Context(), c)
		if r.count() != 5 || len(f.waiting()) != 0 || c.failures != 0 {
			t.Errorf("%s: %d attempts, %d rows wait", name, r.count(), len(f.waiting()))
		}
	}
	if text := logged.String(); strings.Contains(text, "secret-of-the-path") || !strings.Contains(text, "attempts=4") {
		t.Errorf("the log: %s", text)
	}
}

// impatient gives up once the request has arrived, as sendTimeout would later.
type impatient struct {
	sender
	arrived <-chan struct{}
}

func (i impatient) send(ctx context.Context, n *store.Notice) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sent := make(chan struct{})
	defer close(sent)
	go func() {
		select {
		case <-i.arrived:
		case <-sent:
		}
		cancel()
	}()
	return i.sender.send(ctx, n)
}

// limited records how long a delivery may take.
type limited struct{ left time.Duration }

func (l *limited) send(ctx context.Context, _ *store.Notice) error {
	deadline, _ := ctx.Deadline()
	l.left = time.Until(deadline)
	return nil
}

// TestTimes compares how long is waited.
func TestTimes(t *testing.T) {
	t.Parallel()
	for attempt, want := range map[int]time.Duration{1: time.Minute, 2: 2 * time.Minute, 7: time.Hour,
		1 << 30: time.Hour} {
		if got := backoff(attempt); got != want {
			t.Errorf("attempt %d: %s", attempt, got)
		}
	}
	f := newFixture(t, Config{Channels: []Channel{mailChannel("mail")}, Contacts: contacts})
	f.queue(event("r1", broker.NoticePending))
	l := &limited{}
	f.channels[0].sender = l
	f.drain(t.Context(), f.channels[0])
	if l.left <= 0 || l.left > sendTimeout {
		t.Errorf("a delivery may take %s", l.left)
	}
	if firstBackoff <= sendTimeout {
		t.Error("a notice that is being sent is due again")
	}
	if got := pauseAfter(1<<30, errors.New("x")); got != maxPause {
		t.Error(got)
	}
}

// TestGiveUp ends a notice after a week, those of a channel that was removed, and those that nobody can read.
func TestGiveUp(t *testing.T) {
	t.Parallel()
	r := newReceiver(t)
	r.answer = status(500)
	channels := []Channel{serve(t, "hook", r.ServeHTTP), serve(t, "removed", r.ServeHTTP)}
	f := newFixture(t, Config{Channels: channels})
	f.queue(event("r1", broker.NoticePending))
	f.Notices = f.another(Config{Channels: channels[:1]}, f.store)
	c := f.channels[0]
	for range 1000 {
		f.clock.advance(f.drain(t.Context(), c))
		f.clock.advance(10 * time.Minute)
		f.sweep(t.Context())
	}
	if len(f.waiting()) != 0 || len(r.got) != 1 {
		t.Errorf("%d rows wait, %v", len(f.waiting()), r.got)
	}
	if n := r.count(); n < 7*24 || n > 8*24 {
		t.Errorf("%d attempts in a week", n)
	}
}

// halting is a store on which marks fail, as if the process ended before them.
type halting struct {
	store.Store
	fails bool
	ends  func()
}

func (h *halting) Noticed(ctx context.Context, id string, at time.Time) error {
	if h.fails {
		if h.ends != nil {
			h.ends()
		}
		return errors.New("the disk is full")
	}
	return h.Store.Noticed(ctx, id, at)
}

// TestCrash delivers again what was delivered and not marked when the process ended, under the same ID.
func TestCrash(t *testing.T) {
	t.Parallel()
	r := newReceiver(t)
	config := Config{Channels: []Channel{serve(t, "hook", r.ServeHTTP)}}
	f := newFixture(t, config)
	f.queue(event("r1", broker.NoticePending))
	ctx, end := context.WithCancel(t.Context())
	f.Notices = f.another(config, &halting{Store: f.store, fails: true, ends: end})
	f.drain(ctx, f.channels[0])
	if r.count() != 1 || len(f.waiting()) != 1 {
		t.Fatalf("%d requests, %d rows", r.count(), len(f.waiting()))
	}
	f.Notices = f.another(config, f.store)
	f.drain(t.Context(), f.channels[0])
	if r.count() != 1 {
		t.Error("it was delivered again at once")
	}
	f.clock.advance(firstBackoff)
	f.drain(t.Context(), f.channels[0])
	if r.count() != 2 || r.order[0] != r.order[1] || len(f.waiting()) != 0 {
		t.Errorf("%v, %d rows", r.order, len(f.waiting()))
	}
}

// TestMarkFails delivers once though the store fails for hours after the delivery.
func TestMarkFails(t *testing.T) {
	t.Parallel()
	r := newReceiver(t)
	config := Config{Channels: []Channel{serve(t, "hook", r.ServeHTTP)}}
	f := newFixture(t, config)
	f.queue(event("r1", broker.NoticePending))
	h := &halting{Store: f.store, fails: true}
	f.Notices = f.another(config, h)
	f.wait = func(_ context.Context, d time.Duration) {
		if f.clock.advance(d); f.clock.now().Sub(start) > 5*time.Hour {
			h.fails = false
		}
	}
	f.drain(t.Context(), f.channels[0])
	f.drain(t.Context(), f.channels[0])
	if r.count() != 1 || len(f.waiting()) != 0 {
		t.Errorf("%d requests, %d rows", r.count(), len(f.waiting()))
	}
}

// TestStops ends a delivery that has begun in order when the broker stops.
func TestStops(t *testing.T) {
	t.Parallel()
	r := newReceiver(t)
	f := newFixture(t, Config{Channels: []Channel{serve(t, "hook", r.ServeHTTP)}})
	f.queue(numbered(3)...)
	ctx, stop := context.WithCancel(t.Context())
	r.answer = func(w http.ResponseWriter, _ *http.Request) {
		stop()
		w.WriteHeader(http.StatusNoContent)
	}
	f.wait = func(ctx context.Context, _ time.Duration) { <-ctx.Done() }
	f.drain(ctx, f.channels[0])
	if r.count() != 1 || len(f.waiting()) != 2 {
		t.Errorf("%d requests, %d rows wait", r.count(), len(f.waiting()))
	}
}

// TestTwoSenders delivers each notice once though two senders work on one store.
func TestTwoSenders(t *testing.T) {
	t.Parallel()
	r := newReceiver(t)
	config := Config{Channels: []Channel{serve(t, "hook", r.ServeHTTP)}}
	f := newFixture(t, config)
	const count = 150
	f.queue(numbered(count)...)
	var group sync.WaitGroup
	for range 2 {
		n := f.another(config, f.store)
		group.Go(func() {
			for range count {
				n.drain(t.Context(), n.channels[0])
			}
		})
	}
	group.Wait()
	if r.count() != count || len(r.got) != count {
		t.Errorf("%d deliveries of %d notices", r.count(), len(r.got))
	}
}

// TestHangs delivers on one channel while another one hangs, and ends when it is told to.
func TestHangs(t *testing.T) {
	t.Parallel()
	r := newReceiver(t)
	hung := make(chan struct{}, 1)
	hang := serve(t, "hang", func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		hung <- struct{}{}
		<-r.Context().Done()
	})
	f := newFixture(t, Config{Channels: []Channel{hang, serve(t, "hook", r.ServeHTTP)}})
	f.queue(numbered(50)...)
	delivered := make(chan struct{}, 100)
	r.answer = func(http.ResponseWriter, *http.Request) { delivered <- struct{}{} }
	f.wait = func(ctx context.Context, d time.Duration) {
		if d != stopTimeout {
			<-ctx.Done()
		}
	}
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		f.Notices.Run(ctx)
		close(ended)
	}()
	<-hung
	for range 50 {
		<-delivered
	}
	end()
	<-ended
	for _, row := range f.waiting() {
		if row.Channel == "hang" && row.Attempts > 1 {
			t.Errorf("%+v", row)
		}
	}
}

// counting is a store that counts what is read and that keeps rows in memory.
type counting struct {
	store.Store
	reads, most int
}

func (c *counting) Notices(ctx context.Context, channel string, due time.Time, limit int) ([]store.Notice, error) {
	rows, err := c.Store.Notices(ctx, channel, due, limit)
	c.reads++
	c.most = max(c.most, len(rows))
	return rows, err
}

// TestMany delivers 10,000 notices, oldest first, of which few are in memory at once.
func TestMany(t *testing.T) {
	t.Parallel()
	r := newReceiver(t)
	config := Config{Channels: []Channel{serve(t, "hook", r.ServeHTTP)}}
	f := newFixture(t, config)
	const count = 10_000
	var want []string
	for first := range 10 {
		events := numbered(count)[first*count/10:][:count/10]
		for i := range events {
			events[i].Time = start.Add(time.Duration(first*count/10+i) * time.Millisecond)
			want = append(want, ids(f.Rows(events[i]))...)
		}
		f.queue(events...)
	}
	f.clock.advance(time.Minute)
	c := &counting{Store: f.store}
	f.Notices = f.another(config, c)
	for f.drain(t.Context(), f.channels[0]) == 0 {
		continue
	}
	if !slices.Equal(r.order, want) || c.most > batchRows || c.reads != count/batchRows+1 {
		t.Errorf("%d deliveries, %d reads of up to %d rows", r.count(), c.reads, c.most)
	}
}
