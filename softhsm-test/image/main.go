// Command image pushes test images for the demonstration: "image push REF TEXT" prints the digest of a new image, and
// "image tamper FROM TO TEXT" makes another image wear the signatures of the first.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

func main() {
	ctx := context.Background()
	var pushed digest.Digest
	err := fmt.Errorf("usage: image push REF TEXT | image tamper FROM TO TEXT")
	switch {
	case len(os.Args) == 4 && os.Args[1] == "push":
		pushed, err = oci.PushImage(ctx, os.Args[2], os.Args[3])
	case len(os.Args) == 5 && os.Args[1] == "tamper":
		pushed, err = oci.Tamper(ctx, os.Args[2], os.Args[3], os.Args[4])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	fmt.Println(pushed)
}
