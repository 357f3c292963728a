package softhsmtest

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
)

// TestSign signs and verifies with the real notation, in a real registry: six specs, two envelopes, with the chain on
// the token and in a file; and a tampered image is refused.
func TestSign(t *testing.T) {
	token := NewToken(t, "signing")
	n := NewNotation(t, token)
	registry := StartRegistry(t)
	for _, spec := range keySpecs {
		t.Run(spec, func(t *testing.T) {
			uri, pem := newKey(t, token, n.Plugin, spec, "key-"+spec)
			n.Trust(t, pem)
			for _, format := range []string{"jws", "cose"} {
				for where, arguments := range map[string][]string{"token": nil,
					"file": {"--plugin-config", "certificate-chain=" + pem}} {
					repository := fmt.Sprintf("%s/%s-%s-%s", registry, strings.ToLower(spec), format, where)
					digest, err := PushImage(context.Background(), repository+":v1", format+where)
					if err != nil {
						t.Fatal(err)
					}
					image := repository + "@" + digest.String()
					Run(t, n.Program, append([]string{"sign", "--insecure-registry", "--plugin", "hsm", "--id", uri,
						"--signature-format", format, image}, arguments...)...)
					Run(t, n.Program, "verify", "--insecure-registry", image)

					forged, err := Tamper(context.Background(), repository+":v1", repository+":v2", "something else")
					if err != nil {
						t.Fatal(err)
					}
					if _, stderr, err := try(t, "", n.Program, "verify", "--insecure-registry",
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
	token := NewToken(t, "signing")
	n := NewNotation(t, token)
	uri, pem := newKey(t, token, n.Plugin, "EC-384", "release")
	n.Trust(t, pem)
	registry := StartRegistry(t)
	Run(t, n.Plugin, "install", "--key-name", "release", "--key", uri, "--default")
	index, err := PushIndex(context.Background(), registry+"/index:v1")
	if err != nil {
		t.Fatal(err)
	}
	artifact, err := PushArtifact(context.Background(), registry+"/sbom:v1")
	if err != nil {
		t.Fatal(err)
	}
	for _, reference := range []string{registry + "/index@" + index.String(), registry + "/sbom@" + artifact.String()} {
		Run(t, n.Program, "sign", "--insecure-registry", reference)
		Run(t, n.Program, "verify", "--insecure-registry", reference)
	}
}

// TestSignBlob signs the descriptor of a file through the library that notation is made of, as 'notation blob sign'
// does. (That command is in no release of notation 1.)
func TestSignBlob(t *testing.T) {
	token := NewToken(t, "signing")
	n := NewNotation(t, token)
	for _, spec := range []string{"RSA-2048", "EC-384"} {
		uri, _ := newKey(t, token, n.Plugin, spec, "blob-"+spec)
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
	token := NewToken(t, "signing")
	n := NewNotation(t, token)
	registry := StartRegistry(t)
	uri := strings.TrimSpace(Run(t, n.Plugin, "key", "generate", "--token", token.Label, "--spec", "EC-256", "--label",
		"release"))
	csr := Run(t, n.Plugin, "cert", "csr", uri, "--subject", "CN=release,O=Example,C=CH,ST=Zurich")
	root := NewCA(t, "Root", nil)
	intermediate := NewCA(t, "Intermediate", root)
	stranger := NewCA(t, "Stranger", nil)
	leaf := intermediate.IssueCSR(t, csr)
	dir := t.TempDir()
	leafFile, issuers, whole, rootFile := filepath.Join(dir, "leaf.pem"), filepath.Join(dir, "issuers.pem"),
		filepath.Join(dir, "whole.pem"), filepath.Join(dir, "root.pem")
	write(t, leafFile, leaf)
	write(t, issuers, stranger.PEM()+root.PEM()+intermediate.PEM())
	write(t, whole, root.PEM()+leaf+stranger.PEM()+intermediate.PEM())
	write(t, rootFile, root.PEM())
	n.Trust(t, rootFile)

	sign := func(name, chain string) {
		t.Helper()
		digest, err := PushImage(context.Background(), registry+"/"+name+":v1", name)
		if err != nil {
			t.Fatal(err)
		}
		image := registry + "/" + name + "@" + digest.String()
		arguments := []string{"sign", "--insecure-registry", "--plugin", "hsm", "--id", uri, image}
		if chain != "" {
			arguments = append(arguments, "--plugin-config", "certificate-chain="+chain)
		}
		Run(t, n.Program, arguments...)
		Run(t, n.Program, "verify", "--insecure-registry", image)
	}
	sign("file", whole)
	Run(t, n.Plugin, "cert", "import", uri, leafFile)
	sign("mixed", issuers)
	Run(t, n.Plugin, "cert", "import", uri, whole)
	sign("token", "")
}
