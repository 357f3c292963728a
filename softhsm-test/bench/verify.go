package main

import (
	"fmt"
	"path/filepath"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// verify measures hsm-image beside notation, both with one image of a registry on this machine, and with ten images at
// once. It comes last, for it gives this process another user's configuration.
func (b *bench) verify() {
	f := fixture{bench: b}
	k := b.parts.token.keys[0]
	f.Setenv("SOFTHSM2_CONF", filepath.Join(b.parts.token.Dir, "softhsm2.conf"))
	registry, notation := oci.StartRegistry(f), softhsmtest.NewNotation(f, b.parts.token.Token)
	ours := softhsmtest.Build(f, "hsm-image") // in the same way as notation
	pem := filepath.Join(b.parts.token.Dir, k.spec+".pem")
	softhsmtest.Run(f, notation.Plugin, "cert", "import", k.uri, pem)
	notation.Trust(f, pem)
	images := make([]string, 10)
	for i := range images {
		name := fmt.Sprintf("%s/app-%d", registry, i)
		sum, err := oci.PushImage(b.ctx, name+":v1", name)
		if err != nil {
			f.Fatal(err)
		}
		images[i] = name + "@" + sum.String()
		softhsmtest.Run(f, notation.Program, "sign", "--insecure-registry", "--plugin", "hsm", "--id", k.uri, images[i])
	}
	one := contender{command: []string{ours, "verify", "--plain-http", images[0]}}
	ten := contender{command: append([]string{ours, "verify", "--plain-http"}, images...)}
	r := b.race(50, one, contender{command: []string{notation.Program, "verify", "--insecure-registry", images[0]}}, ten)
	b.add(row{
		name: "`hsm-image verify`, ms", ours: spread(r[0].milliseconds), other: "notation: " + spread(r[1].milliseconds),
	}.ratio(r[0].milliseconds.ratio(r[1].milliseconds), "notation", atMost(1.2)))
	b.add(row{
		name: "`hsm-image verify`, 10 images, ms", ours: spread(r[2].milliseconds),
		other: "one image: " + spread(r[0].milliseconds),
	}.ratio(r[2].milliseconds.ratio(r[0].milliseconds), "one image", atMost(3)))
	b.approved(f, ours, registry)
}
