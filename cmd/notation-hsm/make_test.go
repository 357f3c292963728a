package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// only makes PATH hold these programs and no others, and returns the folder that they are in.
func only(t *testing.T, programs ...string) string {
	t.Helper()
	folder := t.TempDir()
	for _, name := range programs {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(folder, name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", folder)
	return folder
}

// script puts a shell script in the place of a program.
func script(t *testing.T, folder, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(folder, name), []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
}

// TestBuildWithoutCompiler runs make where no C compiler is installed: it builds a program without PKCS#11 only when
// told to.
func TestBuildWithoutCompiler(t *testing.T) {
	only(t, "go", "make")
	t.Setenv("CC", "")
	build := func(cgo, target string) (string, error) {
		t.Setenv("CGO_ENABLED", cgo)
		output, err := exec.Command("make", "--no-print-directory", "-C", "../..", target).CombinedOutput()
		return string(output), err
	}
	output, err := build("", "build")
	if err == nil || !strings.HasPrefix(output, "error: ") ||
		!strings.Contains(output, "apt-get install gcc libc6-dev") ||
		!strings.Contains(output, "CGO_ENABLED=0 make build") || strings.Contains(output, "go build") {
		t.Errorf("without a compiler: %v, %s", err, output)
	}
	if output, err := build("0", "compiler"); err != nil {
		t.Errorf("asked to do without: %v, %s", err, output)
	}
}

// TestPackagesWithoutRoot checks that a user who is neither root nor allowed to use sudo gets the line for an
// administrator, and that nothing asks for root when no package is missing.
func TestPackagesWithoutRoot(t *testing.T) {
	folder := only(t, "bash", "grep")
	script(t, folder, "id", "echo 1000")
	script(t, folder, "apt-get", "echo apt-get runs; exit 1")
	script(t, folder, "dpkg-query", `[ "$4" = gcc ] && echo installed`)
	install := func(packages ...string) (string, error) {
		output, err := exec.Command("../../softhsm-test/packages.sh", packages...).CombinedOutput()
		return string(output), err
	}
	for _, sudo := range []string{"", "echo not allowed; exit 1"} {
		if sudo != "" {
			script(t, folder, "sudo", sudo)
		}
		output, err := install("gcc", "softhsm2", "openssl")
		if err == nil || strings.Contains(output, "apt-get runs") ||
			!strings.HasSuffix(output, "\napt-get install --no-install-recommends softhsm2 openssl\n") {
			t.Errorf("%v: %s", err, output)
		}
		if output, err := install("gcc"); err != nil || output != "" {
			t.Errorf("with nothing missing: %v, %s", err, output)
		}
	}
}
