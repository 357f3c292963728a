// Package sign tests, end to end, how images are signed: with the notation command, by the plugin's contract, and in
// pipelines.
package sign

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notaryproject/notation-core-go/signature"
	_ "github.com/notaryproject/notation-core-go/signature/cose"
	_ "github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/notaryproject/notation-go"
	notationplugin "github.com/notaryproject/notation-go/plugin"
	notationsigner "github.com/notaryproject/notation-go/signer"
	"oras.land/oras-go/v2/content"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestSign signs and verifies with the real notation, in a real registry: six specs, two envelopes, with the chain on
// the token and in a file; and a tampered image is refused.
func TestSign(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	registry := oci.StartRegistry(t)
	for _, spec := range softhsmtest.KeySpecs {
		t.Run(spec, func(t *testing.T) {
			uri, pem := softhsmtest.NewKey(t, token, n.Plugin, spec, "key-"+spec)
			n.Trust(t, pem)
			for _, format := range []string{"jws", "cose"} {
				for where, arguments := range map[string][]string{"token": nil,
					"file": {"--plugin-config", "certificate-chain=" + pem}} {
					repository := fmt.Sprintf("%s/%s-%s-%s", registry, strings.ToLower(spec), format, where)
					digest, err := oci.PushImage(context.Background(), repository+":v1", format+where)
					if err != nil {
						t.Fatal(err)
					}
					image := repository + "@" + digest.String()
					softhsmtest.Run(t, n.Program, append([]string{"sign", "--insecure-registry", "--plugin", "hsm", "--id", uri,
						"--signature-format", format, image}, arguments...)...)
					softhsmtest.Run(t, n.Program, "verify", "--insecure-registry", image)

					forged, err := oci.Tamper(context.Background(), repository+":v1", repository+":v2", "something else")
					if err != nil {
						t.Fatal(err)
					}
					if _, stderr, err := softhsmtest.Try(t, "", n.Program, "verify", "--insecure-registry",
						repository+"@"+forged.String()); err == nil {
						t.Errorf("%s: a tampered image was verified: %s", image, stderr)
					}
				}
			}
		})
	}
}

// TestSignKinds signs what else is in registries: an index, and an OCI artifact that is no image.
func TestSignKinds(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri, pem := softhsmtest.NewKey(t, token, n.Plugin, "EC-384", "release")
	n.Trust(t, pem)
	registry := oci.StartRegistry(t)
	softhsmtest.Run(t, n.Plugin, "install", "--key-name", "release", "--key", uri, "--default")
	index, err := oci.PushIndex(context.Background(), registry+"/index:v1")
	if err != nil {
		t.Fatal(err)
	}
	artifact, err := oci.PushArtifact(context.Background(), registry+"/sbom:v1")
	if err != nil {
		t.Fatal(err)
	}
	for _, reference := range []string{registry + "/index@" + index.String(), registry + "/sbom@" + artifact.String()} {
		softhsmtest.Run(t, n.Program, "sign", "--insecure-registry", reference)
		softhsmtest.Run(t, n.Program, "verify", "--insecure-registry", reference)
	}
}

// TestSignBlob signs the descriptor of a file through the library that notation is made of, as 'notation blob sign'
// does. (That command is in no release of notation 1.)
func TestSignBlob(t *testing.T) {
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	for _, spec := range []string{"RSA-2048", "EC-384"} {
		uri, _ := softhsmtest.NewKey(t, token, n.Plugin, spec, "blob-"+spec)
		plugin, err := notationplugin.NewCLIPlugin(context.Background(), "hsm", n.Plugin)
		if err != nil {
			t.Fatal(err)
		}
		signer, err := notationsigner.NewPluginSigner(plugin, uri, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, mediaType := range []string{"application/jose+json", "application/cose"} {
			blob := content.NewDescriptorFromBytes("application/octet-stream", []byte("a release"))
			options := notation.SignerSignOptions{SignatureMediaType: mediaType}
			envelope, _, err := signer.Sign(context.Background(), blob, options)
			if err != nil {
				t.Fatalf("%s, %s: %v", spec, mediaType, err)
			}
			parsed, err := signature.ParseEnvelope(mediaType, envelope)
			if err != nil {
				t.Fatal(err)
			}
			signed, err := parsed.Verify()
			if err != nil {
				t.Errorf("%s, %s: %v", spec, mediaType, err)
			} else if !strings.Contains(string(signed.Payload.Content), blob.Digest.String()) {
				t.Errorf("%s, %s: another payload was signed: %s", spec, mediaType, signed.Payload.Content)
			}
		}
	}
}

// TestChainFromCA signs with a leaf that a CA issued, its chain in parts: leaf on the token and issuers in a file out
// of order among strangers, all on the token, and all in a file.
func TestChainFromCA(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	registry := oci.StartRegistry(t)
	uri := strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", token.Label, "--spec", "EC-256",
		"--label", "release"))
	csr := softhsmtest.Run(t, n.Plugin, "cert", "csr", uri, "--subject", "CN=release,O=Example,C=CH,ST=Zurich")
	root := softhsmtest.NewCA(t, "Root", nil)
	intermediate := softhsmtest.NewCA(t, "Intermediate", root)
	stranger := softhsmtest.NewCA(t, "Stranger", nil)
	leaf := intermediate.IssueCSR(t, csr)
	dir := t.TempDir()
	leafFile, issuers, whole, rootFile := filepath.Join(dir, "leaf.pem"), filepath.Join(dir, "issuers.pem"),
		filepath.Join(dir, "whole.pem"), filepath.Join(dir, "root.pem")
	softhsmtest.Write(t, leafFile, leaf)
	softhsmtest.Write(t, issuers, stranger.PEM()+root.PEM()+intermediate.PEM())
	softhsmtest.Write(t, whole, root.PEM()+leaf+stranger.PEM()+intermediate.PEM())
	softhsmtest.Write(t, rootFile, root.PEM())
	n.Trust(t, rootFile)

	sign := func(name, chain string) {
		t.Helper()
		digest, err := oci.PushImage(context.Background(), registry+"/"+name+":v1", name)
		if err != nil {
			t.Fatal(err)
		}
		image := registry + "/" + name + "@" + digest.String()
		arguments := []string{"sign", "--insecure-registry", "--plugin", "hsm", "--id", uri, image}
		if chain != "" {
			arguments = append(arguments, "--plugin-config", "certificate-chain="+chain)
		}
		softhsmtest.Run(t, n.Program, arguments...)
		softhsmtest.Run(t, n.Program, "verify", "--insecure-registry", image)
	}
	sign("file", whole)
	softhsmtest.Run(t, n.Plugin, "cert", "import", uri, leafFile)
	sign("mixed", issuers)
	softhsmtest.Run(t, n.Plugin, "cert", "import", uri, whole)
	sign("token", "")
}
