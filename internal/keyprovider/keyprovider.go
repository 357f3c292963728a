// Package keyprovider answers requests of ocicrypt's key provider protocol: one JSON request on standard input, one
// JSON answer on standard output. With it, skopeo, buildah, podman, CRI-O and other programs that use ocicrypt encrypt
// images to keys in a module and decrypt them.
//
// The protocol is described in docs/keyprovider.md of github.com/containers/ocicrypt.
package keyprovider

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/layerkey"
)

// provider is the name of this key provider in ocicrypt's configuration. It is part of the name of an image's
// annotations.
const provider = "hsm"

// origin is where the names of keys come from: the request, which a tool wrote.
var origin = config.Stored("the key provider's request")

// parameters are the values that the user wrote after provider:NAME:, by the provider's name.
type parameters map[string][][]byte

type request struct {
	Operation string `json:"op"`
	Wrap      struct {
		Encrypt struct {
			Parameters parameters
		} `json:"ec"`
		Options []byte `json:"optsdata"`
	} `json:"keywrapparams"`
	Unwrap struct {
		Decrypt struct {
			Parameters parameters
		} `json:"dc"`
		Annotation []byte `json:"annotation"`
	} `json:"keyunwrapparams"`
}

type answer struct {
	Wrapped struct {
		Annotation []byte `json:"annotation"`
	} `json:"keywrapresults"`
	Unwrapped struct {
		Options []byte `json:"optsdata"`
	} `json:"keyunwrapresults"`
}

const (
	requestLimit = 4 << 20 // bytes; a request has a few kilobytes
	valuesLimit  = 64      // recipients or keys of a request, for each of which a token may be opened
)

// Serve reads one request from in and writes the answer to out.
func Serve(ctx context.Context, ks *keystore.Keystore, in io.Reader, out io.Writer) error {
	r, err := readRequest(in)
	if err != nil {
		return err
	}
	var a answer
	switch r.Operation {
	case "keywrap":
		a.Wrapped.Annotation, err = wrap(ctx, ks, r)
	case "keyunwrap":
		a.Unwrapped.Options, err = unwrap(ctx, ks, r)
	default:
		err = failure.New(failure.Unsupported, "unknown operation %q", r.Operation).
			WithHint("use keywrap or keyunwrap")
	}
	if err != nil {
		return err
	}
	defer clear(a.Unwrapped.Options)
	return json.NewEncoder(out).Encode(a)
}

// readRequest reads a request of bounded size and structure. It fails with Invalid.
func readRequest(in io.Reader) (*request, error) {
	const hint = "let a tool with ocicrypt start this command: see docs/key-provider.md"
	data, err := io.ReadAll(io.LimitReader(in, requestLimit+1))
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot read the request: %w", err).WithHint(hint)
	}
	if len(data) > requestLimit {
		return nil, failure.New(failure.Invalid, "the request is larger than %d bytes", requestLimit).WithHint(hint)
	}
	var r request
	err = bound.JSON(data, bound.Limits{Bytes: requestLimit, Depth: bound.Depth, Elements: 4096})
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		return nil, failure.New(failure.Invalid, "the request is not JSON of the key provider protocol: %w", err).
			WithHint(hint)
	}
	return &r, nil
}

// wrap returns the options of a layer, wrapped for the recipients in the request.
func wrap(ctx context.Context, ks *keystore.Keystore, r *request) ([]byte, error) {
	if len(r.Wrap.Options) == 0 {
		return nil, failure.New(failure.Invalid, "the request to wrap has no key of a layer (optsdata)").
			WithHint("report this to the makers of the tool that started the key provider")
	}
	names, err := values(r.Wrap.Encrypt.Parameters)
	if err != nil {
		return nil, err
	}
	recipients, err := layerkey.ParseRecipients(ctx, ks, names, origin)
	if err != nil {
		return nil, err
	}
	for _, recipient := range recipients {
		if recipient.Warning != "" {
			slog.Warn(recipient.Warning)
		}
	}
	return layerkey.Seal(r.Wrap.Options, recipients)
}

// unwrap returns the options of a layer, unwrapped with a key in the request or, if it names none, on the token that
// the settings name.
func unwrap(ctx context.Context, ks *keystore.Keystore, r *request) ([]byte, error) {
	if len(r.Unwrap.Annotation) == 0 {
		return nil, failure.New(failure.Invalid, "the request to unwrap has no annotation").
			WithHint("report this to the makers of the tool that started the key provider")
	}
	references, err := values(r.Unwrap.Decrypt.Parameters)
	if err != nil {
		return nil, err
	}
	keys := layerkey.OpenKeys(ks, references, origin)
	defer keys.Close()
	return keys.Open(ctx, map[string]string{layerkey.Annotation: base64.StdEncoding.EncodeToString(r.Unwrap.Annotation)})
}

// values returns the values for this provider. The value Enabled, which ocicrypt makes of provider:hsm without a value,
// names no key and is left out. It fails with Invalid for too many values, and for values of a provider of another name
// that is likely to be this one.
func values(p parameters) ([]string, error) {
	var found []string
	for _, value := range p[provider] {
		if len(value) > 0 && string(value) != "Enabled" {
			found = append(found, string(value))
		}
	}
	if len(found) > valuesLimit {
		return nil, failure.New(failure.Invalid, "the request names %d keys, more than %d", len(found), valuesLimit).
			WithHint("name fewer keys")
	}
	if _, ok := p[provider]; !ok {
		for _, name := range slices.Sorted(maps.Keys(p)) {
			if strings.Contains(name, provider) {
				return nil, failure.New(failure.Invalid, "the key provider is configured as %q", name).
					WithHint(`name it "hsm" under "key-providers" in the file of OCICRYPT_KEYPROVIDER_CONFIG: images carry this name`)
			}
		}
	}
	return found, nil
}
