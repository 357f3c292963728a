package image

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
)

// encryptedIndex returns an OCI layout with an index of two images that are encrypted to imagesKey.
func encryptedIndex(t *testing.T, m *keystoretest.Module) Reference {
	t.Helper()
	source := newOCIFolder(t)
	amd, arm := source.plainImage("linux/amd64", "one"), source.plainImage("linux/arm64", "two")
	from := source.finish(source.index(amd, arm), 0)
	to := mustParse(t, "oci:"+t.TempDir()+"/encrypted:app")
	if _, err := Encrypt(t.Context(), m.Keystore(), Copy{From: from, To: to}, []string{imagesKey}, nil); err != nil {
		t.Fatal(err)
	}
	return to
}

// pushed copies a layout into a registry.
func (r *registry) pushed(t *testing.T, from Reference, tag string) Reference {
	t.Helper()
	path, _, _ := from.local()
	folder := &ociFolder{t: t, dir: path}
	source, err := openSource(t.Context(), from, Registry{}.context())
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	tree, err := read(t.Context(), from, Registry{}.context(), source, &stallTimer{timer: time.NewTimer(stall)})
	if err != nil {
		t.Fatal(err)
	}
	put := func(name, mimeType string, data []byte) {
		d := digest.FromBytes(data).String()
		r.manifests[name], r.manifests[d], r.types[d] = data, data, mimeType
	}
	for _, i := range tree.images {
		put(i.Digest.String(), i.mimeType, []byte(folder.read(i.Digest)))
	}
	put(tag, tree.mimeType, tree.manifest)
	return r.image(t, tag)
}

// TestChangeRecipients adds and removes a recipient of an index, in a layout and in a registry: with each, the layers
// open with the keys of their recipients alone.
func TestChangeRecipients(t *testing.T) {
	m, server := newModule(t), newRegistry(t)
	layout := encryptedIndex(t, m)
	opens := func(ref Reference, reference string) bool {
		t.Helper()
		images, err := Layers(t.Context(), ref, plainHTTP)
		if err != nil || len(images) != 2 {
			t.Fatal(images, err)
		}
		_, err = decryptConfig(t.Context(), m.Keystore(), ref, images, []string{reference})
		return err == nil
	}
	for name, ref := range map[string]Reference{"layout": layout, "registry": server.pushed(t, layout, "app")} {
		t.Run(name, func(t *testing.T) {
			ks := m.Keystore()
			added, err := AddRecipients(t.Context(), ks, ref, plainHTTP, []string{otherKey}, []string{imagesKey})
			if err != nil || added.Layers != 2 || !opens(ref, imagesKey) || !opens(ref, otherKey) {
				t.Fatalf("%+v, %v", added, err)
			}
			if (added.Name != "") != (name == "registry") {
				t.Errorf("its name is %q", added.Name)
			}
			before := m.Calls("ECDH")
			again, err := AddRecipients(t.Context(), ks, ref, plainHTTP, []string{otherKey}, []string{imagesKey})
			if err != nil || again.Layers != 0 || again.Digest != added.Digest || m.Calls("ECDH") != before {
				t.Errorf("a recipient that was one: %+v, %v", again, err)
			}
			_, err = RemoveRecipients(t.Context(), ks, ref, plainHTTP, []string{imagesKey, otherKey})
			mustFailWith(t, err, failure.Denied, "it would have no recipient left")
			removed, err := RemoveRecipients(t.Context(), ks, ref, plainHTTP, []string{imagesKey})
			if err != nil || removed.Layers != 2 || opens(ref, imagesKey) || !opens(ref, otherKey) {
				t.Fatalf("%+v, %v", removed, err)
			}
			_, err = RemoveRecipients(t.Context(), ks, ref, plainHTTP, []string{imagesKey})
			mustFailWith(t, err, failure.NotFound, "is no recipient of")
		})
	}
	// The tag is written last.
	if n := len(server.puts); n == 0 || server.puts[n-1] != "app" || slices.Index(server.puts, "app")%3 != 2 {
		t.Errorf("the manifests were written in the order %v", server.puts)
	}
	if m.OpenStores() != 0 {
		t.Errorf("%d stores are open", m.OpenStores())
	}
}

// TestRemoveFromPacket removes a recipient who shares a packet with another.
func TestRemoveFromPacket(t *testing.T) {
	m, source := newModule(t), newOCIFolder(t)
	to := mustParse(t, "oci:"+t.TempDir()+"/encrypted:app")
	c := Copy{From: source.finish(source.plainImage("linux/amd64", "one"), 0), To: to}
	if _, err := Encrypt(t.Context(), m.Keystore(), c, []string{imagesKey, otherKey}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := RemoveRecipients(t.Context(), m.Keystore(), to, Registry{}, []string{imagesKey}); err != nil {
		t.Fatal(err)
	}
	plain := Copy{From: to, To: mustParse(t, "oci:"+t.TempDir()+"/plain:app")}
	_, err := Decrypt(t.Context(), m.Keystore(), plain, []string{imagesKey})
	mustFailWith(t, err, failure.Invalid, "no key here opens the layer")
	if _, err := Decrypt(t.Context(), m.Keystore(), plain, []string{otherKey}); err != nil {
		t.Error(err)
	}
}

// TestRecipientsShown lists recipients with their layers, and their names by kid.
func TestRecipientsShown(t *testing.T) {
	m := newModule(t)
	ref := encryptedIndex(t, m)
	images, err := Layers(t.Context(), ref, Registry{})
	if err != nil {
		t.Fatal(err)
	}
	found, encrypted := Recipients(images)
	names, err := RecipientNames(t.Context(), m.Keystore(), []string{imagesKey})
	if err != nil || encrypted != 2 || len(found) != 1 || found[0].Layers != 2 || names[found[0].KeyID] != imagesKey {
		t.Errorf("%+v of %d layers, %v, %v", found, encrypted, names, err)
	}
	if _, err := RecipientNames(t.Context(), m.Keystore(), []string{"pkcs11:object=none"}); err == nil {
		t.Error("a key that does not exist has a name")
	}
}

// TestTagMoved does not take a tag that names another image than the one that was read.
func TestTagMoved(t *testing.T) {
	m, server := newModule(t), newRegistry(t)
	ref := server.pushed(t, encryptedIndex(t, m), "app")
	other := []byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `"}`)
	server.onPut = func(string) int {
		server.manifests["app"] = other
		server.types[digest.FromBytes(other).String()] = ocispec.MediaTypeImageManifest
		return 0
	}
	_, err := AddRecipients(t.Context(), m.Keystore(), ref, plainHTTP, []string{otherKey}, []string{imagesKey})
	mustFailWith(t, err, failure.Conflict, "it has become another image")
	if string(server.manifests["app"]) != string(other) || slices.Contains(server.puts, "app") {
		t.Error("the tag was taken")
	}
	server.onPut = func(string) int { return http.StatusForbidden }
	ref = server.pushed(t, encryptedIndex(t, m), "app")
	_, err = AddRecipients(t.Context(), m.Keystore(), ref, plainHTTP, []string{otherKey}, []string{imagesKey})
	mustFailWith(t, err, failure.Unavailable, "cannot write "+ref.String())
}

// TestRefusedChanges changes recipients only where manifests can be changed in place.
func TestRefusedChanges(t *testing.T) {
	m, source := newModule(t), newOCIFolder(t)
	plain := source.finish(source.plainImage("linux/amd64", "one"), 0)
	for words, c := range map[string]struct {
		ref  Reference
		kind failure.Kind
	}{
		"neither in a registry nor in oci:DIR:TAG": {mustParse(t, "dir:"+t.TempDir()), failure.Unsupported},
		"has no encrypted layer":                   {plain, failure.Invalid},
		"cannot read":                              {mustParse(t, "oci:"+t.TempDir()+"/none"), failure.NotFound},
	} {
		_, err := AddRecipients(t.Context(), m.Keystore(), c.ref, Registry{}, []string{otherKey}, []string{imagesKey})
		mustFailWith(t, err, c.kind, words)
	}
	_, err := AddRecipients(t.Context(), m.Keystore(), plain, Registry{}, nil, nil)
	mustFailWith(t, err, failure.Invalid, "there is no recipient")
	_, err = AddRecipients(t.Context(), m.Keystore(), encryptedIndex(t, m), Registry{}, []string{otherKey},
		[]string{otherKey})
	mustFailWith(t, err, failure.Invalid, "layer 0 ")
	_, err = RemoveRecipients(t.Context(), m.Keystore(), encryptedIndex(t, m), Registry{}, []string{kidA})
	mustFailWith(t, err, failure.NotFound, "is no recipient of")
}
