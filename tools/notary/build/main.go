// Command build builds Notary v1's client, server and signer into a folder: go run ./build DIR, in the folder above.
//
// The server takes the name of a role from a file name in an upload, such as targets/alice.json. Since Go 1.17,
// mime/multipart returns the last element of such a name alone, so that the server refuses every delegation. build
// replaces this one call; all else is the module as go.sum pins it.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const module = "github.com/theupdateframework/notary"

// call is what the server's upload handler calls, and fix takes the whole name.
const (
	call = "part.FileName()"
	fix  = `func() string {
			_, params, _ := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
			return params["filename"]
		}()`
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return errors.New("usage: build DIR")
	}
	found, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return fmt.Errorf("go list: %w", err)
	}
	dir, err := os.MkdirTemp("", "notary")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := copyFixed(strings.TrimSpace(string(found)), filepath.Join(dir, "source")); err != nil {
		return err
	}
	modules := filepath.Join(dir, "go.mod") // with go.sum beside it
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	if err := command("mod", "edit", "-replace", module+"="+filepath.Join(dir, "source"), modules); err != nil {
		return err
	}
	programs := module + "/cmd/notary"
	return command("build", "-trimpath", "-modfile", modules, "-o", os.Args[1]+"/", programs, programs+"-server",
		programs+"-signer")
}

func command(args ...string) error {
	cmd := exec.Command("go", args...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd.Run()
}

// copyFixed copies the module's folder, and fixes the call in the copy.
func copyFixed(from, to string) error {
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	handler := filepath.Join(to, "server", "handlers", "default.go")
	source, err := os.ReadFile(handler)
	if err != nil {
		return err
	}
	if bytes.Count(source, []byte(call)) != 1 {
		return fmt.Errorf("%s does not call %s once", handler, call)
	}
	source = bytes.Replace(source, []byte(call), []byte(fix), 1)
	source = bytes.Replace(source, []byte("\"io\"\n"), []byte("\"io\"\n\t\"mime\"\n"), 1)
	if err := os.Remove(handler); err != nil { // it is read-only
		return err
	}
	return os.WriteFile(handler, source, 0o600)
}
