package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// fixture lets this program use the parts of the tests, which ask for a testing.TB. What would end a test ends the
// program: guard catches it. Whatever is not defined here is not there, and would panic.
type fixture struct {
	testing.TB
	bench *bench
	dir   string // where temporary folders are made; "" is the system's place for them
}

var errMissing = errors.New("a part is missing")

func (f fixture) Context() context.Context          { return f.bench.ctx }
func (f fixture) Helper()                           {}
func (f fixture) Fatal(args ...any)                 { panic(errors.New(strings.TrimSpace(fmt.Sprintln(args...)))) }
func (f fixture) Fatalf(format string, args ...any) { panic(fmt.Errorf(format, args...)) }
func (f fixture) Skipf(format string, args ...any) {
	panic(fmt.Errorf("%w: %s", errMissing, fmt.Sprintf(format, args...)))
}
func (f fixture) Cleanup(fn func()) { f.bench.cleanup = append(f.bench.cleanup, fn) }

func (f fixture) Setenv(name, value string) {
	if err := os.Setenv(name, value); err != nil {
		f.Fatal(err)
	}
}

func (f fixture) TempDir() string {
	dir, err := os.MkdirTemp(f.dir, "notation-hsm-bench-")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// guard runs fn, then what it asked to have cleaned up, and returns what fn failed with.
func (b *bench) guard(fn func()) (err error) {
	defer func() {
		for _, clean := range b.cleanup {
			clean()
		}
	}()
	defer func() {
		switch r := recover().(type) {
		case nil:
		case error:
			err = r
		default:
			panic(r)
		}
	}()
	fn()
	return nil
}

// parts are the programs that are measured, and what they sign with.
type parts struct {
	plugin, empty, bare, run, pkcs11Tool string
	module, shim, spy                    string
	digest                               string // a file
	token                                *token
}

// A token holds one key of each spec.
type token struct {
	*softhsmtest.Token
	keys []key
}

type key struct {
	spec, label, id, uri string
	request              string // a file: the request for a signature
}

const tokenLabel = "bench"

func (b *bench) prepare() parts {
	f := fixture{bench: b}
	dir := f.TempDir()
	for _, variable := range os.Environ() { // whatever the user has set is not to be measured, nor touched
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "NOTATION_HSM_") ||
			strings.HasPrefix(name, "SHIM_") {
			f.Setenv(name, "")
		}
	}
	p := parts{
		plugin: filepath.Join(dir, "notation-hsm"), empty: filepath.Join(dir, "empty"),
		bare: filepath.Join(dir, "bare"), run: filepath.Join(dir, "run"), digest: filepath.Join(dir, "digest"),
		pkcs11Tool: softhsmtest.Program(f, "pkcs11-tool"), module: softhsmtest.Module(f), spy: softhsmtest.Spy(f),
	}
	// Both Go programs are built in the same way, that of releases.
	for out, pkg := range map[string]string{p.plugin: "./cmd/notation-hsm", p.empty: "./softhsm-test/bench/empty"} {
		softhsmtest.Run(f, "go", slices.Concat([]string{"build", "-C", repository(f), "-tags", softhsmtest.Tags, "-trimpath"},
			softhsmtest.Hardened, []string{"-o", out, pkg})...)
	}
	headers := strings.TrimSpace(softhsmtest.Run(f, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11"))
	for out, source := range map[string]string{p.bare: "bare.c", p.run: "run.c"} {
		softhsmtest.Run(f, softhsmtest.Program(f, "cc"), "-O2", "-I"+headers, "-o", out,
			filepath.Join(repository(f), "softhsm-test", "bench", source), "-ldl", "-lpthread")
	}
	p.shim = softhsmtest.Shim(f, p.module)
	write(f, p.digest, "thirty-two bytes make one digest")
	f.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "config"))
	f.Setenv("PKCS11SPY", p.module)
	f.Setenv("NOTATION_HSM_PIN", softhsmtest.PIN)
	f.Setenv("NOTATION_HSM_MODULE_PATH", p.module)
	p.token = b.newToken(p, 10)
	return p
}

// newToken makes a token that holds a number of objects: a key pair of each spec, and data. SoftHSM keeps each in a
// file and reads them all for every signature, so the files are in memory: the disk is nobody's merit here.
func (b *bench) newToken(p parts, objects int) *token {
	f := fixture{bench: b}
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		f.dir = "/dev/shm"
	}
	t := &token{Token: softhsmtest.NewToken(f, tokenLabel)}
	for i, spec := range []string{"EC-256", "RSA-2048"} {
		k := key{spec: spec, label: "key-" + spec, id: fmt.Sprintf("0%d", i+1)}
		k.uri = strings.TrimSpace(softhsmtest.Run(f, p.plugin, "key", "generate", "--token", tokenLabel, "--spec", spec,
			"--label", k.label, "--id", k.id))
		chain := filepath.Join(t.Dir, spec+".pem")
		write(f, chain, softhsmtest.Run(f, p.plugin, "cert", "self-sign", k.uri, "--subject",
			"CN=release,O=Example,C=CH,ST=Zurich"))
		request, err := json.Marshal(map[string]any{
			"contractVersion": "1.0", "keyId": k.uri, "keySpec": spec, "hashAlgorithm": "SHA-256",
			"payload":      []byte(`{"targetArtifact":{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":525}}`),
			"pluginConfig": map[string]string{"certificate-chain": chain},
		})
		if err != nil {
			f.Fatal(err)
		}
		k.request = filepath.Join(t.Dir, spec+".json")
		write(f, k.request, string(request))
		t.keys = append(t.keys, k)
	}
	softhsmtest.Run(f, p.bare, p.module, softhsmtest.PIN, "fill", fmt.Sprint(objects-2*len(t.keys)))
	return t
}

func repository(f fixture) string {
	return strings.TrimSpace(softhsmtest.Run(f, "go", "list", "-m", "-f", "{{.Dir}}",
		"github.com/notation-hsm/notation-hsm"))
}

func write(f fixture, file, text string) {
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		f.Fatal(err)
	}
}
