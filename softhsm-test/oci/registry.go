// Package oci makes registries and images for tests: images in a registry or in an OCI layout, signed, encrypted or
// forged, and a registry that answers as a test wants.
package oci

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// StartRegistry starts the CNCF distribution registry on a free loopback port, with its storage in a temporary folder,
// and returns its address. It ends with the test.
func StartRegistry(t testing.TB) string {
	t.Helper()
	program, dir := softhsmtest.Build(t, "registry"), t.TempDir()
	// The registry cannot pick a port itself, so a free one is looked up first; should someone else take it, another is
	// tried.
	for range 5 {
		if address, ok := startRegistry(t, program, dir); ok {
			return address
		}
	}
	t.Fatal("the registry did not start")
	return ""
}

func startRegistry(t testing.TB, program, dir string) (string, bool) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	conf := filepath.Join(dir, "registry.yml")
	text := fmt.Sprintf(
		"version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %q}, "+
			"delete: {enabled: true}}\nhttp: {addr: %s}\n", filepath.Join(dir, "data"), address)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	registry := softhsmtest.Start(t, program, "serve", conf)
	if !registry.Ready(func() bool {
		response, err := http.Get("http://" + address + "/v2/")
		if err == nil {
			response.Body.Close()
		}
		return err == nil
	}) {
		t.Log(registry.Stop())
		return "", false
	}
	return address, true
}
