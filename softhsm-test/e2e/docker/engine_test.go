package docker

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// An engine stands in for Docker's: it answers the requests of docker's command line, records them, and runs nothing. A
// container of it repeats its standard input, and then ends with a code.
type engine struct {
	socket  string
	onPull  func(reference string) // is called before an image is looked up in its registry
	code    int                    // of containers
	endures int                    // signals after which containers end; 0 for those that end by themselves

	mu       sync.Mutex
	images   map[string]string // what the engine has: reference -> digest
	requests []string          // all but those for its version

	started, ended chan struct{} // of the one container
	once           sync.Once
}

// startEngine starts an engine that ends with the test.
func startEngine(t *testing.T) *engine {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "eng") // the paths of sockets must be short
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{socket: filepath.Join(dir, "docker.sock"), images: map[string]string{}, onPull: func(string) {},
		started: make(chan struct{}), ended: make(chan struct{})}
	listener, err := net.Listen("unix", e.socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Api-Version", "1.47")
		w.Header().Set("Ostype", "linux")
	})
	mux.HandleFunc("POST /images/create", e.pull)
	mux.HandleFunc("POST /images/{name...}", e.tag)
	mux.HandleFunc("POST /containers/create", e.create)
	mux.HandleFunc("POST /containers/c0ffee/attach", e.attach)
	mux.HandleFunc("POST /containers/c0ffee/wait", e.wait)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		e.record("%s %s", r.Method, r.URL)
		refuse(w, http.StatusNotImplemented, "the stand-in cannot do this")
	})
	mux.HandleFunc("POST /containers/c0ffee/start", func(w http.ResponseWriter, _ *http.Request) {
		e.record("start")
		w.WriteHeader(http.StatusNoContent)
		close(e.started)
	})
	mux.HandleFunc("POST /containers/c0ffee/resize", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /containers/c0ffee/kill", e.kill)
	version := regexp.MustCompile(`^/v1\.\d+`)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.Path, r.URL.RawPath = version.ReplaceAllString(r.URL.Path, ""), ""
		mux.ServeHTTP(w, r)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
		os.RemoveAll(dir)
	})
	return e
}

func refuse(w http.ResponseWriter, code int, format string, args ...any) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": fmt.Sprintf(format, args...)})
}

func (e *engine) record(format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.requests = append(e.requests, strings.TrimSpace(fmt.Sprintf(format, args...)))
}

// pull looks an image up in its registry, and has it from then on.
func (e *engine) pull(w http.ResponseWriter, r *http.Request) {
	name, tag := r.URL.Query().Get("fromImage"), r.URL.Query().Get("tag")
	separator := ":"
	if strings.Contains(tag, ":") {
		separator = "@"
	}
	reference := name + separator + tag
	e.record("pull %s %s", reference, r.URL.Query().Get("platform"))
	e.onPull(reference)
	repository, err := oci.Open(reference)
	if err != nil {
		refuse(w, http.StatusBadRequest, "%v", err)
		return
	}
	found, err := repository.Resolve(r.Context(), tag)
	if err != nil {
		refuse(w, http.StatusNotFound, "%v", err)
		return
	}
	e.mu.Lock()
	e.images[reference] = found.Digest.String()
	e.mu.Unlock()
	fmt.Fprintf(w, "{\"status\":\"Digest: %s\"}\n", found.Digest)
}

func (e *engine) tag(w http.ResponseWriter, r *http.Request) {
	image := strings.TrimSuffix(r.PathValue("name"), "/tag")
	tagged := r.URL.Query().Get("repo") + ":" + r.URL.Query().Get("tag")
	e.record("tag %s %s", image, tagged)
	e.mu.Lock()
	defer e.mu.Unlock()
	has, known := e.images[image]
	if !known {
		refuse(w, http.StatusNotFound, "No such image: %s", image)
		return
	}
	e.images[tagged] = has
	w.WriteHeader(http.StatusCreated)
}

func (e *engine) create(w http.ResponseWriter, r *http.Request) {
	var container struct{ Image string }
	if err := json.NewDecoder(r.Body).Decode(&container); err != nil {
		refuse(w, http.StatusBadRequest, "%v", err)
		return
	}
	e.record("create %s %s", container.Image, r.URL.Query().Get("name"))
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, known := e.images[container.Image]; !known {
		refuse(w, http.StatusNotFound, "No such image: %s", container.Image)
		return
	}
	w.WriteHeader(http.StatusCreated)
	_, _ = w.Write([]byte(`{"Id":"c0ffee","Warnings":[]}`))
}

// attach copies the standard input of the container to its standard output, until the container ends.
func (e *engine) attach(w http.ResponseWriter, r *http.Request) {
	connection, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer connection.Close()
	_, _ = connection.Write([]byte("HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n" +
		"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"))
	if r.URL.Query().Get("stdin") == "1" && e.endures == 0 {
		text, _ := io.ReadAll(buffered)
		header := binary.BigEndian.AppendUint32([]byte{1, 0, 0, 0}, uint32(len(text))) //nolint:gosec // it is short
		_, _ = connection.Write(slices.Concat(header, text))
	}
	<-e.started
	if e.endures == 0 {
		e.end()
	}
	<-e.ended
}

func (e *engine) end() { e.once.Do(func() { close(e.ended) }) }

func (e *engine) wait(w http.ResponseWriter, r *http.Request) {
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	select {
	case <-e.ended:
		fmt.Fprintf(w, `{"StatusCode":%d}`, e.code)
	case <-r.Context().Done():
	}
}

func (e *engine) kill(w http.ResponseWriter, r *http.Request) {
	e.record("kill %s", r.URL.Query().Get("signal"))
	w.WriteHeader(http.StatusNoContent)
	if e.killed() >= e.endures {
		e.end()
	}
}

// asked returns the requests so far.
func (e *engine) asked() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.requests)
}

// killed returns how many signals the container got.
func (e *engine) killed() (count int) {
	for _, request := range e.asked() {
		if strings.HasPrefix(request, "kill") {
			count++
		}
	}
	return count
}

// holds gives the engine an image, as if it had been pulled or built before.
func (e *engine) holds(reference, digest string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.images[reference] = digest
}
