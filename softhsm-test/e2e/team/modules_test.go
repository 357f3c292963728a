package team

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/certs"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// copies is a broker whose key is in several tokens, each behind a module of its own that a test has fail.
type copies struct {
	*team
	settings string // folder of the shims' settings
	shims    []string
}

// startCopies starts a broker whose key release is in tokens prod-1 to prod-N. Those that others names have another key
// under its label.
func startCopies(t testing.TB, n int, o softhsmtest.TeamOptions, others ...string) *copies {
	t.Helper()
	token := softhsmtest.NewToken(t, "prod")
	c := &copies{team: &team{t: t, token: token, notation: softhsmtest.NewNotation(t, token)}, settings: t.TempDir()}
	softhsmtest.Setenv(t, "SHIM_SETTINGS", c.settings)
	shim := softhsmtest.Shim(t, token.Module)
	var same, uris []string
	for i := range n {
		label, path := fmt.Sprintf("prod-%d", i+1), fmt.Sprintf("%s-%d.so", strings.TrimSuffix(shim, ".so"), i+1)
		token.Init(t, label)
		softhsmtest.Run(t, "cp", shim, path)
		c.shims = append(c.shims, filepath.Base(path))
		c.set(i, "SHIM_LOG", c.log(i))
		pin := filepath.Join(c.settings, label+".pin")
		if err := os.WriteFile(pin, []byte(softhsmtest.PIN), 0o600); err != nil {
			t.Fatal(err)
		}
		o.Modules += fmt.Sprintf("- {token: \"pkcs11:token=%s\", module-path: %s, pin-source: \"file:%s\", timeout: %s}\n",
			label, path, pin, o.Timeout)
		uris = append(uris, "\"pkcs11:token="+label+";object=release\"")
		same = append(same, label)
	}
	same = slices.DeleteFunc(same, func(label string) bool { return slices.Contains(others, label) })
	if len(others) > 0 {
		softhsmtest.SameKey(t, "release", others...)
	}
	c.chain = softhsmtest.SameKey(t, "release", same...)
	chain, err := certs.ReadFile(c.chain)
	if err != nil {
		t.Fatal(err)
	}
	c.public = chain[0].PublicKey
	if o.LogKey != "" {
		softhsmtest.SameKey(t, "log", "prod-1", "prod-2")
	}
	key := "[" + strings.Join(uris, ", ") + "]"
	if n == 1 {
		key = uris[0]
	}
	o.Policy = strings.Replace(policy, "pkcs11:token=prod;object=release", key, 1)
	o.Config += fmt.Sprintf("keys: {release: {certificate-chain: %s}}\n", c.chain)
	o.Limits = manyRequests
	c.TeamBroker = softhsmtest.StartTeam(t, token, o)
	if o.LogKey != "" {
		c.LogKey = "pkcs11:token=prod-1;object=log"
	}
	c.http, c.flags = c.Client(), c.LogFlags()
	return c
}

// log returns the file with the calls of a module.
func (c *copies) log(i int) string { return filepath.Join(c.settings, fmt.Sprintf("calls-%d", i)) }

// set sets a variable of one shim.
func (c *copies) set(i int, name, value string) {
	c.t.Helper()
	dir := filepath.Join(c.settings, c.shims[i])
	if err := os.MkdirAll(dir, 0o700); err != nil {
		c.t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path+".new", []byte(value), 0o600); err != nil {
		c.t.Error(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		c.t.Error(err)
	}
}

// calls returns how often a function of a module was called; "" counts all.
func (c *copies) calls(i int, name string) int {
	c.t.Helper()
	all := softhsmtest.Calls(c.t, c.log(i))
	if name == "" {
		return len(all)
	}
	return softhsmtest.Count(all, name)
}

// part returns a part of the broker's readiness, and whether the broker is ready.
func (c *copies) part(name string) (part brokerapi.Part, ready bool) {
	c.t.Helper()
	_, body, err := c.Ask(c.http, c.ci(), http.MethodGet, "/readyz", "")
	if err != nil {
		c.t.Fatal(err)
	}
	var all brokerapi.Readiness
	if err := json.Unmarshal([]byte(body), &all); err != nil {
		c.t.Fatalf("%v: %s", err, body)
	}
	for _, p := range all.Parts {
		if p.Name == name {
			return p, all.Ready
		}
	}
	return brokerapi.Part{}, all.Ready
}

// waitFor waits until a module of the key is used, or is left out. The broker is ready all the time.
func (c *copies) waitFor(i int, used bool) brokerapi.Part {
	c.t.Helper()
	for {
		part, ready := c.part(fmt.Sprintf("module %d of key release", i+1))
		if !ready {
			c.t.Fatal("the broker is not ready")
		}
		if part.Name != "" && part.Ready == used {
			return part
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestSeveralModules spreads signatures over four tokens, with the calls that one token takes.
func TestSeveralModules(t *testing.T) {
	const each = 8
	perSignature := func(t *testing.T, n int) (all int) {
		c := startCopies(t, n, softhsmtest.TeamOptions{Timeout: softhsmtest.Patience})
		for range 2 * n { // opens the sessions
			c.signs()
		}
		before := make([]int, n)
		for i := range n {
			before[i] = c.calls(i, "C_Sign")
			all -= c.calls(i, "")
		}
		for range each * n {
			c.signs()
		}
		for i := range n {
			if made := c.calls(i, "C_Sign") - before[i]; made != each {
				t.Errorf("module %d of %d made %d of %d signatures", i+1, n, made, each*n)
			}
			all += c.calls(i, "")
		}
		c.accounted()
		return all / n
	}
	one, four := 0, 0
	t.Run("one", func(t *testing.T) { one = perSignature(t, 1) })
	t.Run("four", func(t *testing.T) { four = perSignature(t, 4) })
	t.Logf("%d calls for %d signatures in one module, and %d in each of four", one, each, four)
	if one != four || one == 0 {
		t.Errorf("%d calls for %d signatures in one module, and %d in each of four", one, each, four)
	}
}

// TestOneModuleFails has one of four modules fail under load. No signature fails; the module is left out, and is used
// again when it works.
func TestOneModuleFails(t *testing.T) {
	softhsmtest.NeedRoot(t) // to kill what the broker runs
	for name, c := range map[string]struct {
		fault string
		most  int // signatures that it may be asked for while it fails, once it is left out
	}{
		"hangs":   {"C_Sign:hang", 16}, // a probe finds the key each time, and one use tells that it cannot sign
		"crashes": {"C_Sign:crash", 16 * 2},
		"lies":    {"C_Sign:wrong", 16},
		"refuses": {"*:30", 0},
		"is gone": {"*:e0", 0},
	} {
		t.Run(name, func(t *testing.T) {
			softhsmtest.Parallel(t)
			s := startCopies(t, 4, softhsmtest.TeamOptions{Timeout: "3s"})
			s.set(1, "SHIM_FAULT_TIMES", "0")
			s.load(20, 0, nil)
			s.load(100, 20, func() { s.set(1, "SHIM_FAULT", c.fault) })
			if part := s.waitFor(1, false); part.Detail == "" {
				t.Error("it is not said why the module is left out")
			}
			before := s.calls(1, "C_Sign")
			s.load(100, 0, nil)
			if n := s.calls(1, "C_Sign") - before; n > c.most {
				t.Errorf("the module that fails was asked for %d of 100 signatures", n)
			}
			s.set(1, "SHIM_FAULT", "")
			s.waitFor(1, true)
			before = s.calls(1, "C_Sign")
			for s.calls(1, "C_Sign") == before {
				s.load(20, 0, nil)
			}
			s.survived()
		})
	}
}

// TestRefusedPIN has the token of one module refuse its PIN. It is tried once; signatures go on in the other modules,
// and in this one after an operator has corrected the PIN and cleared the refusal.
func TestRefusedPIN(t *testing.T) {
	softhsmtest.Parallel(t)
	s := startCopies(t, 3, softhsmtest.TeamOptions{Timeout: softhsmtest.Patience})
	s.Stop()
	pin := filepath.Join(s.settings, "prod-3.pin")
	softhsmtest.Write(t, pin, "1234")
	before := s.calls(2, "C_Login")
	s.Start()
	s.load(40, 0, nil)
	s.waitFor(2, false)
	for probes := s.calls(2, ""); s.calls(2, "") == probes; { // the token is looked at, and nobody logs in
		s.load(10, 0, nil)
		time.Sleep(100 * time.Millisecond)
	}
	if n := s.calls(2, "C_Login") - before; n != 1 {
		t.Errorf("%d logins with the wrong PIN", n)
	}
	softhsmtest.Write(t, pin, softhsmtest.PIN)
	softhsmtest.Run(t, s.Program, "pin", "clear", "--config", s.Config())
	s.Restart() // a running broker has forgotten nothing
	for signed := s.calls(2, "C_Sign"); s.calls(2, "C_Sign") == signed; {
		s.load(10, 0, nil)
	}
	if n := s.calls(2, "C_Login") - before; n != 2 {
		t.Errorf("%d logins", n)
	}
}

// TestOtherKey has another key under the label in the first token: it never signs, and check-config says so.
func TestOtherKey(t *testing.T) {
	softhsmtest.Parallel(t)
	address := softhsmtest.FreeAddresses(t, 1)[0]
	s := startCopies(t, 3, softhsmtest.TeamOptions{Timeout: softhsmtest.Patience, Listen: "metrics: " + address,
		LogKey: `["pkcs11:token=prod-1;object=log", "pkcs11:token=prod-2;object=log"]`}, "prod-1")
	s.load(40, 0, nil) // which verifies each signature
	if part := s.waitFor(0, false); !strings.Contains(part.Detail, "another key") {
		t.Errorf("it is not said that the module has another key: %q", part.Detail)
	}
	for s.calls(0, "C_Sign") == 0 { // it signs the log alone, in its turn
		s.load(10, 0, nil)
	}
	client := &http.Client{}
	answer, err := client.Get("http://" + address + "/metrics") //nolint:noctx // loopback
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	metrics, err := io.ReadAll(answer.Body)
	for i, other := range []string{"1", "0", "0"} {
		line := fmt.Sprintf(`hsm_broker_module_other_key{key="release",module="pkcs11:token=prod-%d;object=release"} %s`, i+1,
			other)
		if err != nil || !strings.Contains(string(metrics), line+"\n") {
			t.Errorf("the metrics lack %s (%v)", line, err)
		}
	}
	stdout, stderr, err := softhsmtest.Try(t, "", s.Program, "check-config", "--online", "--config", s.Config())
	if err == nil || !strings.Contains(stdout, "keys.release.key[0]: the module has another key") {
		t.Errorf("check-config: %v\n%s%s", err, stdout, stderr)
	}
	s.accounted()
}
