package softhsmtest

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi/brokerapitest"
)

// hostileClients is the number of clients at once.
const hostileClients = 64

// Hostile sends a server of the broker's API what it has to refuse.
type Hostile struct {
	testing.TB
	Dial        func() net.Conn  // connects as a caller who may sign with the key release
	Public      *ecdsa.PublicKey // of that key
	Description *brokerapitest.Description
	// Page reports whether a path is of a page for people, which is not described; nil for none.
	Page func(path string) bool
}

// Storm sends 500 malformed requests.
func (h *Hostile) Storm(seed uint64) {
	requests := make(chan malformed)
	var group sync.WaitGroup
	for range hostileClients {
		group.Go(func() {
			for m := range requests {
				h.try(m)
			}
		})
	}
	all := h.table()
	random := rand.New(rand.NewPCG(seed, 13)) //nolint:gosec // a test repeats
	for len(all) < 500 {
		all = append(all, h.mutant(random))
	}
	for _, m := range all {
		requests <- m
	}
	close(requests)
	group.Wait()
}

// malformed is a request that is refused; a mutant may be a good one.
type malformed struct {
	name   string
	text   []byte
	mutant bool
}

func (h *Hostile) try(m malformed) {
	conn := h.Dial()
	defer conn.Close()
	h.write(conn, string(m.text))
	sent, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(m.text)))
	if err == nil {
		_, err = io.Copy(io.Discard, sent.Body)
	}
	if err != nil { // the server would wait for the rest
		_ = conn.(interface{ CloseWrite() error }).CloseWrite() // as a Unix socket and TLS have it
	}
	status, body := h.read(conn, sent)
	switch {
	case status == 0 || status/100 == 4: // closed or refused
	case m.mutant && (status/100 == 2 || status/100 == 3):
	default:
		h.Errorf("%s: status %d (%s): %.300q", m.name, status, body, m.text)
	}
}

// read reads an answer, and checks it against the description. It returns no status for what is refused before it is a
// request of HTTP/1.1: a connection that is closed, or an answer of the server below the API.
func (h *Hostile) read(conn net.Conn, sent *http.Request) (status int, text string) {
	answer, err := http.ReadResponse(bufio.NewReader(conn), sent)
	if err != nil {
		return 0, ""
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, ""
	}
	if !strings.Contains(answer.Header.Get("Content-Type"), "json") {
		switch answer.StatusCode {
		case http.StatusBadRequest, http.StatusExpectationFailed, http.StatusRequestHeaderFieldsTooLarge,
			http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
			return 0, ""
		}
	}
	if sent != nil && (h.Page == nil || !h.Page(sent.URL.Path)) {
		_, err = h.Description.Check(sent, brokerapitest.Answer{Status: answer.StatusCode, Header: answer.Header, Body: body})
		if err != nil {
			h.Errorf("%s %s: %v", sent.Method, sent.URL, err)
		}
	}
	return answer.StatusCode, string(body)
}

// request returns a request as text. header lines end in \r\n.
func (h *Hostile) request(method, key, header, body string) string {
	return h.requestTo(method, brokerapi.SignaturesPath(key), header, body)
}

func (h *Hostile) requestTo(method, path, header, body string) string {
	return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: broker\r\nContent-Type: application/json\r\n%s\r\n%s",
		method, path, header, body)
}

func (h *Hostile) posted(body string) string {
	return h.request("POST", "release", fmt.Sprintf("Content-Length: %d\r\n", len(body)), body)
}

// valid returns the body of a good request, and its payload.
func (h *Hostile) valid() (body string, payload []byte) {
	header, _ := json.Marshal(map[string]any{
		"alg": "ES256", "crit": []string{"io.cncf.notary.signingScheme"},
		"cty":                          "application/vnd.cncf.notary.payload.v1+json",
		"io.cncf.notary.signingScheme": "notary.x509",
		"io.cncf.notary.signingTime":   time.Now().UTC().Format(time.RFC3339),
	})
	content, _ := json.Marshal(map[string]any{"targetArtifact": map[string]any{
		"digest": "sha256:" + strings.Repeat("a", 64), "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 525,
	}})
	encode := base64.RawURLEncoding.EncodeToString
	payload = []byte(encode(header) + "." + encode(content))
	return h.body(payload), payload
}

func (h *Hostile) body(payload []byte) string {
	encoded, _ := json.Marshal(brokerapi.SignatureRequest{Payload: payload, Algorithm: "ECDSA-SHA-256"})
	return string(encoded)
}

// Sign fails the test unless the server signs.
func (h *Hostile) Sign() {
	h.Helper()
	conn := h.Dial()
	defer conn.Close()
	body, payload := h.valid()
	text := h.posted(body)
	h.write(conn, text)
	sent, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
	if err != nil {
		h.Fatal(err)
	}
	status, answer := h.read(conn, sent)
	var signature brokerapi.Signature
	digest := sha256.Sum256(payload)
	if err := json.Unmarshal([]byte(answer), &signature); err != nil || status != http.StatusCreated ||
		!ecdsa.VerifyASN1(h.Public, digest[:], signature.Signature) {
		h.Errorf("status %d, %v: %s", status, err, answer)
	}
}

// table returns requests with one defect each.
func (h *Hostile) table() (all []malformed) {
	add := func(name, text string) { all = append(all, malformed{name: name, text: []byte(text)}) }
	body, payload := h.valid()
	length := fmt.Sprintf("Content-Length: %d\r\n", len(body))
	long := strings.Repeat("x", 1<<20)
	chunked := "Transfer-Encoding: chunked\r\n"

	add("nothing", "")
	add("NUL", "\x00")
	add("TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
	add("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	add("HTTP/1.0", strings.Replace(h.posted(body), "HTTP/1.1", "HTTP/1.0", 1))
	add("HTTP/9.9", strings.Replace(h.posted(body), "HTTP/1.1", "HTTP/9.9", 1))
	add("HTTP/0.9", "GET /v1/keys/release\r\n")
	add("no host", strings.Replace(h.posted(body), "Host: broker\r\n", "", 1))
	add("two hosts", strings.Replace(h.posted(body), "Host: broker\r\n", "Host: a\r\nHost: b\r\n", 1))
	add("long method", long[:1<<15]+" / HTTP/1.1\r\nHost: x\r\n\r\n")
	add("long path", h.request("POST", long, length, body))
	add("long header", h.request("POST", "release", "X: "+long+"\r\n"+length, body))
	add("many headers", h.request("POST", "release", strings.Repeat("X: y\r\n", 1<<16)+length, body))
	add("space in a header", h.request("POST", "release", "X : y\r\n"+length, body))
	add("folded header", h.request("POST", "release", " X: y\r\n"+length, body))
	add("control in a header", h.request("POST", "release", "X: \x01\r\n"+length, body))
	add("two lengths", h.request("POST", "release", length+"Content-Length: 1\r\n", body))
	add("length and chunks", h.request("POST", "release", "Content-Length: 1\r\nTransfer-Encoding: gzip\r\n", body))
	add("negative length", h.request("POST", "release", "Content-Length: -1\r\n", body))
	add("huge length", h.request("POST", "release", "Content-Length: 99999999999999999999\r\n", body))
	add("large length", h.request("POST", "release", "Content-Length: 9000000000000000000\r\n", body))
	add("hexadecimal length", h.request("POST", "release", "Content-Length: 0x10\r\n", body))
	add("length too long", h.request("POST", "release", fmt.Sprintf("Content-Length: %d\r\n", len(body)+1), body))
	add("length too short", h.request("POST", "release", fmt.Sprintf("Content-Length: %d\r\n", len(body)-1), body))
	add("no length", h.request("POST", "release", "", body))
	add("bad chunk", h.request("POST", "release", chunked, "zz\r\n"+body))
	add("huge chunk", h.request("POST", "release", chunked, "ffffffffffffffff\r\n"+body))
	add("endless chunks", h.request("POST", "release", chunked, strings.Repeat("1\r\n \r\n", 1<<18)))
	add("large chunk", h.request("POST", "release", chunked, "400000\r\n"+strings.Repeat(" ", 4<<20)))
	add("truncated chunk", h.request("POST", "release", chunked, "ff\r\n{"))
	add("chunked twice", h.request("POST", "release", "Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"))
	add("unknown encoding", h.request("POST", "release", "Transfer-Encoding: x\r\n", body))
	add("compressed", h.request("POST", "release", "Content-Encoding: gzip\r\n"+length, body))
	add("unknown expectation", h.request("POST", "release", "Expect: 200-ok\r\n"+length, body))
	add("upgrade", h.request("GET", "release", "Connection: Upgrade\r\nUpgrade: websocket\r\n", ""))
	add("h2c", h.request("GET", "release",
		"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n", ""))
	for _, method := range []string{"GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "post",
		"P\x00ST"} {
		add("method "+method, h.request(method, "release", "", ""))
	}
	for _, path := range []string{
		"*", "", "/", "//", "/v1/keys/", "/v1/keys/..", "/../../etc/passwd", "pkcs11:token=x",
		"/v1/keys/release/signatures?a=b", "/v1/keys/release/signatures?", "/v1/keys/release/signatures#x",
		"http://other/v1/keys/other/signatures",
	} {
		add("path "+path, h.requestTo("POST", path, length, body))
	}
	for _, name := range []string{
		"%", "%zz", "%00", "%FF", "%2e%2e", "a%2fb", "%F0%9F%94%91", long[:8192], "broker:release", "nethsm:release",
		"pkcs11:module-path=%2Ftmp%2Fx.so", "pkcs11:object=release?pin-value=1", "pkcs11:%70%69n-value=1",
	} {
		add("key "+name[:min(len(name), 80)], h.requestTo("POST", "/v1/keys/"+name+"/signatures", length, body))
	}
	for _, media := range []string{"", "text/plain", "application/xml", "application/json;a=b", "multipart/form-data",
		"\x01", long[:8192]} {
		add("type "+media[:min(len(media), 20)], strings.Replace(h.posted(body), "application/json", media, 1))
	}
	with := func(old, changed string) string { return strings.Replace(body, old, changed, 1) }
	for name, body := range map[string]string{
		"empty": "", "null": "null", "true": "true", "number": "1e400", "string": `"x"`, "array": "[]", "object": "{}",
		"deep arrays":         strings.Repeat("[", 1<<20),
		"deep objects":        strings.Repeat(`{"a":`, 1<<17),
		"NULs":                strings.Repeat("\x00", 1<<10),
		"many names":          "{" + strings.Repeat(`"a":1,`, 1<<17) + `"b":1}`,
		"long name":           `{"` + long + `":1}`,
		"long algorithm":      `{"payload":"","algorithm":"` + long + `"}`,
		"twice":               with("{", `{"payload":"YQ==",`),
		"other case":          with("payload", "PAYLOAD"),
		"unknown":             with("{", `{"hash":"YQ==",`),
		"trailing":            body + "{}",
		"truncated":           body[:len(body)-1],
		"huge number":         `{"payload":` + strings.Repeat("9", 1<<20) + `}`,
		"invalid UTF-8":       with("ECDSA", "\xff"),
		"UTF-16":              "\xff\xfe{\x00}\x00",
		"surrogate":           `{"\ud800":1}`,
		"bare hash":           h.body(make([]byte, 32)),
		"no payload":          h.body(nil),
		"large payload":       h.body(bytes.Repeat([]byte("x"), 1<<20)),
		"too large payload":   h.body(bytes.Repeat([]byte("x"), 1<<21)),
		"payload and more":    h.body(append(bytes.Clone(payload), 'x')),
		"payload twice":       h.body(append(bytes.Clone(payload), payload...)),
		"dot":                 h.body([]byte(".")),
		"base64 with a break": with(`"payload":"`, `"payload":"\n`),
		"base64url":           `{"payload":"-_-_","algorithm":"ECDSA-SHA-256"}`,
		"base64 bits":         `{"payload":"YR==","algorithm":"ECDSA-SHA-256"}`,
		"no padding":          `{"payload":"YQ","algorithm":"ECDSA-SHA-256"}`,
		"algorithm":           with("ECDSA-SHA-256", "none"),
		"another hash":        with("ECDSA-SHA-256", "ECDSA-SHA-512"),
		"RSA":                 with("ECDSA-SHA-256", "RSASSA-PSS-SHA-256"),
	} {
		add("body: "+name, h.posted(body))
	}
	return all
}

// mutant returns a good request with random damage to its text or to its payload.
func (h *Hostile) mutant(random *rand.Rand) malformed {
	body, payload := h.valid()
	text := []byte(h.posted(body))
	if random.IntN(3) == 0 {
		text = []byte(h.posted(h.body(damage(random, payload))))
	} else {
		text = damage(random, text)
	}
	if random.IntN(8) == 0 {
		text = append(text, damage(random, text)...)
	}
	return malformed{"mutant", text, true}
}

// damage returns data with some bytes changed, left out, repeated or put in.
func damage(random *rand.Rand, data []byte) []byte {
	data = bytes.Clone(data)
	for range 1 + random.IntN(4) {
		if len(data) < 2 {
			return data
		}
		at := random.IntN(len(data))
		to := min(len(data), at+1+random.IntN(40))
		switch random.IntN(5) {
		case 0:
			data[at] ^= 1 << random.IntN(8)
		case 1:
			data = append(data[:at:at], data[to:]...)
		case 2:
			data = append(data[:to:to], data[at:]...)
		case 3:
			data = data[:at]
		case 4:
			junk := make([]byte, random.IntN(300))
			for i := range junk {
				junk[i] = byte(random.IntN(256))
			}
			data = append(data[:at:at], append(junk, data[at:]...)...)
		}
	}
	return data
}

// Vanish leaves requests halfway, and signatures before the answer.
func (h *Hostile) Vanish() {
	var group sync.WaitGroup
	for i := range hostileClients {
		group.Go(func() {
			body, _ := h.valid()
			text := h.posted(body)
			if i%2 == 0 {
				text = text[:len(text)*(i+1)/(hostileClients+2)]
			}
			conn := h.Dial()
			h.write(conn, text)
			conn.Close()
		})
	}
	group.Wait()
}

// Hold opens more connections than the server keeps, half of them in the middle of a request, while another client
// signs.
func (h *Hostile) Hold() {
	var held []net.Conn
	for i := range 700 {
		conn := h.Dial()
		if i%2 == 0 {
			h.write(conn, "GET /v1/keys/release HTTP/1.1\r\nHo")
		}
		held = append(held, conn)
	}
	h.Sign()
	for _, conn := range held {
		conn.Close()
	}
}

// write sends text. The agent may close the connection before all is sent.
func (h *Hostile) write(conn net.Conn, text string) { _, _ = io.WriteString(conn, text) }

// Settled returns how many descriptors the server has open, when the number does not change for a while.
func (h *Hostile) Settled(pid int) int {
	last, same := -1, 0
	for same < 20 {
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			h.Fatal(err)
		}
		if len(open) == last {
			same++
		} else {
			last, same = len(open), 0
		}
		time.Sleep(10 * time.Millisecond)
	}
	return last
}

// Memory returns the resident memory of the server in KiB.
func (h *Hostile) Memory(pid int) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		h.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		h.Fatal(err)
	}
	return kib
}
