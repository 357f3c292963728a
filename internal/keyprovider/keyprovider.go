// Package keyprovider speaks ocicrypt's key provider protocol: one JSON request on standard input, one JSON answer on
// standard output. So skopeo, buildah, podman, CRI-O and whatever else is built on ocicrypt can encrypt to keys in a
// module and open with them.
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

// provider is the name of this key provider in ocicrypt's configuration: it is part of the annotation that images
// carry.
const provider = "hsm"

// origin is where the references to keys stand: a tool wrote the request, and not always the user.
var origin = config.Stored("the key provider's request")

// parameters are what the user wrote after provider:NAME:, by the name of the provider.
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
	valuesLimit  = 64      // of the recipients or keys in a request, for each of which a token may be opened
)

// Serve answers the one request that in holds.
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
		err = failure.New(failure.Unsupported, "unknown operation %q",
			r.Operation).
			WithHint("the operations are keywrap and keyunwrap")
	}
	if err != nil {
		return err
	}
	defer clear(a.Unwrapped.Options)
	return json.NewEncoder(out).Encode(a)
}

func readRequest(in io.Reader) (*request, error) {
	const hint = "this command is for tools with ocicrypt, which start it by themselves: see docs/key-provider.md"
	data, err := io.ReadAll(io.LimitReader(in, requestLimit+1))
	if err != nil {
		return nil, failure.New(failure.Invalid, "can't read the request: %w", err).WithHint(hint)
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

func wrap(ctx context.Context, ks *keystore.Keystore, r *request) ([]byte, error) {
	if len(r.Wrap.Options) == 0 {
		return nil, failure.New(failure.Invalid, "the request to wrap has no key of a layer (optsdata)")
	}
	names, err := ours(r.Wrap.Encrypt.Parameters)
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

func unwrap(ctx context.Context, ks *keystore.Keystore, r *request) ([]byte, error) {
	if len(r.Unwrap.Annotation) == 0 {
		return nil, failure.New(failure.Invalid, "the request to unwrap has no annotation")
	}
	references, err := ours(r.Unwrap.Decrypt.Parameters)
	if err != nil {
		return nil, err
	}
	keys := layerkey.OpenKeys(ks, references, origin)
	defer keys.Close()
	return keys.Open(ctx, map[string]string{layerkey.Annotation: base64.StdEncoding.EncodeToString(r.Unwrap.Annotation)})
}

// ours returns what was written for this provider. Nothing after provider:hsm, which ocicrypt makes "Enabled" of, names
// no key.
func ours(p parameters) ([]string, error) {
	var values []string
	for _, value := range p[provider] {
		if len(value) > 0 && string(value) != "Enabled" {
			values = append(values, string(value))
		}
	}
	if len(values) > valuesLimit {
		return nil, failure.New(failure.Invalid, "the request names %d keys, more than %d", len(values),
			valuesLimit).
			WithHint("name fewer")
	}
	if _, there := p[provider]; !there {
		for _, name := range slices.Sorted(maps.Keys(p)) {
			if strings.Contains(name, provider) {
				return nil, failure.New(failure.Invalid, "the key provider is configured as %q", name).
					WithHint(`name it "hsm" under "key-providers" in the file of OCICRYPT_KEYPROVIDER_CONFIG: images carry this name`)
			}
		}
	}
	return values, nil
}
