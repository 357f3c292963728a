package image

import (
	"context"
	"crypto/aes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containers/ocicrypt"
	"github.com/containers/ocicrypt/blockcipher"
	encconfig "github.com/containers/ocicrypt/config"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/layerkey"
)

// pubopts is the name of the annotation with a layer's public options: the cipher and the HMAC.
const pubopts = "org.opencontainers.image.enc.pubopts"

// A wrapper is an ocicrypt key wrapper for an annotation, without any key.
//
// ocicrypt keeps its key wrappers in a table of the process, by annotation. A command that makes one copy registers its
// own there, which replace what OCICRYPT_KEYPROVIDER_CONFIG says of the same annotations.
type wrapper struct{ annotation string }

func (w wrapper) GetAnnotationID() string                   { return w.annotation }
func (wrapper) NoPossibleKeys(map[string][][]byte) bool     { return false }
func (wrapper) GetPrivateKeys(map[string][][]byte) [][]byte { return nil }
func (wrapper) GetRecipients(string) ([]string, error)      { return nil, nil }

//nolint:revive // ocicrypt's name
func (wrapper) GetKeyIdsFromPacket(string) ([]uint64, error) { return nil, nil }

func (wrapper) WrapKeys(*encconfig.EncryptConfig, []byte) ([]byte, error) { return nil, nil }
func (w wrapper) UnwrapKey(*encconfig.DecryptConfig, []byte) ([]byte, error) {
	return nil, fmt.Errorf("no key unwraps %s", w.annotation)
}

// A recipientWrapper wraps the key of each layer for recipients, in this process.
type recipientWrapper struct {
	wrapper
	recipients []layerkey.Recipient
}

// WrapKeys wraps the options of a layer.
func (w recipientWrapper) WrapKeys(_ *encconfig.EncryptConfig, options []byte) ([]byte, error) {
	return layerkey.Seal(options, w.recipients)
}

// encryptConfig returns ocicrypt's configuration to wrap keys for recipients.
func encryptConfig(recipients []layerkey.Recipient) *encconfig.EncryptConfig {
	ocicrypt.RegisterKeyWrapper(strings.TrimPrefix(layerkey.Annotation, layerkey.AnnotationPrefix),
		recipientWrapper{wrapper{layerkey.Annotation}, recipients})
	none := map[string][][]byte{}
	return &encconfig.EncryptConfig{Parameters: none, DecryptConfig: encconfig.DecryptConfig{Parameters: none}}
}

// unwrapped holds the options of layers by packet: they were unwrapped before the copy.
type unwrapped map[string][]byte

// An unwrapper returns options that were unwrapped before the copy.
type unwrapper struct {
	wrapper
	options unwrapped
}

// UnwrapKey returns the options of a packet.
func (u unwrapper) UnwrapKey(_ *encconfig.DecryptConfig, packet []byte) ([]byte, error) {
	if options, ok := u.options[string(packet)]; ok {
		return options, nil
	}
	return nil, errors.New("the image changed while it was read")
}

// decryptConfig unwraps the keys of all encrypted layers, with one login, and returns ocicrypt's configuration to use
// them.
func decryptConfig(ctx context.Context, ks *keystore.Keystore, ref Reference, images []Image,
	references []string) (*encconfig.DecryptConfig, error) {
	keys := layerkey.OpenKeys(ks, references, config.Flags)
	defer keys.Close()
	known := unwrapped{}
	for _, image := range images {
		for _, l := range image.Layers {
			if !l.Encrypted {
				continue
			}
			options, err := unwrapKey(ctx, keys, l)
			if err != nil {
				return nil, prefixed(err, "%s of %s", l, image.name(ref))
			}
			for name, value := range l.annotations {
				if !strings.HasPrefix(name, layerkey.AnnotationPrefix) {
					continue
				}
				// It replaces other key wrappers for the annotation, such as a key provider's command.
				ocicrypt.RegisterKeyWrapper("hsm-image "+name, unwrapper{wrapper{name}, known})
				for text := range strings.SplitSeq(value, ",") {
					if packet, err := base64.StdEncoding.DecodeString(text); err == nil {
						known[string(packet)] = options
					}
				}
			}
		}
	}
	return &encconfig.DecryptConfig{Parameters: map[string][][]byte{}}, nil
}

// unwrapKey returns the options of a layer, checked.
func unwrapKey(ctx context.Context, keys *layerkey.Keys, l Layer) ([]byte, error) {
	options, err := keys.Open(ctx, l.annotations)
	if err != nil {
		return nil, err
	}
	return options, checkOptions(l.annotations, options)
}

// checkOptions fails unless the options of a layer are those of ocicrypt, and the public ones do not override the
// wrapped ones. Whoever can write to a registry can add a nonce to the public options, which ocicrypt prefers to the
// wrapped nonce: the layer would decrypt to noise unnoticed, since the HMAC is over the encrypted layer.
func checkOptions(annotations map[string]string, options []byte) error {
	const hint = "get the image's manifest again from where it was published"
	public, err := publicOptions(annotations)
	if err != nil {
		return failure.New(failure.Invalid, "the annotation %s is damaged: %w", pubopts, err).WithHint(hint)
	}
	var private blockcipher.PrivateLayerBlockCipherOptions
	// The error is left out: it could show the key.
	if json.Unmarshal(options, &private) != nil || len(private.SymmetricKey) != 32 ||
		len(private.CipherOptions["nonce"]) != aes.BlockSize {
		return failure.New(failure.Invalid, "the wrapped key is not one of ocicrypt's").
			WithHint("ask who encrypted the image which tool they used")
	}
	if _, ok := public.CipherOptions["nonce"]; ok {
		return failure.New(failure.Denied, "the annotation %s was changed: it has a nonce of its own", pubopts).
			WithHint(hint)
	}
	return nil
}

// publicOptions returns a layer's public options, from its annotations. It fails unless the cipher is the one that
// ocicrypt has.
func publicOptions(annotations map[string]string) (public blockcipher.PublicLayerBlockCipherOptions, err error) {
	data, err := base64.StdEncoding.DecodeString(annotations[pubopts])
	if err != nil {
		return public, err
	}
	if err := bound.JSON(data, bound.Limits{Bytes: 16 << 10, Depth: bound.Depth, Elements: 256}); err != nil {
		return public, err
	}
	if err := json.Unmarshal(data, &public); err != nil {
		return public, err
	}
	if public.CipherType != blockcipher.AES256CTR {
		return public, fmt.Errorf("the cipher %q is unknown", public.CipherType)
	}
	if len(public.Hmac) != sha256.Size {
		return public, fmt.Errorf("the HMAC has %d bytes instead of %d", len(public.Hmac), sha256.Size)
	}
	return public, nil
}

// prefixed returns a failure with the object that it is about before its message.
func prefixed(err error, format string, args ...any) error {
	f := *failure.From(err)
	f.What = fmt.Sprintf(format, args...) + ": " + f.What
	return &f
}
