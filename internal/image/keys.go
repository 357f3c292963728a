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

// pubopts is the annotation with what is public of a layer's options.
const pubopts = "org.opencontainers.image.enc.pubopts"

// ocicrypt finds who wraps and unwraps keys in a table of the process, by the annotation that the wrapped key is in. It
// is given what is needed for the one copy that a command makes; what OCICRYPT_KEYPROVIDER_CONFIG says of the same
// annotations does not count then.
//
// A wrapper is what it finds there. It has no keys by itself.
type wrapper struct{ annotation string }

func (w wrapper) GetAnnotationID() string                                 { return w.annotation }
func (wrapper) NoPossibleKeys(map[string][][]byte) bool                   { return false }
func (wrapper) GetPrivateKeys(map[string][][]byte) [][]byte               { return nil }
func (wrapper) GetKeyIdsFromPacket(string) ([]uint64, error)              { return nil, nil } //nolint:revive // ocicrypt's name
func (wrapper) GetRecipients(string) ([]string, error)                    { return nil, nil }
func (wrapper) WrapKeys(*encconfig.EncryptConfig, []byte) ([]byte, error) { return nil, nil }
func (w wrapper) UnwrapKey(*encconfig.DecryptConfig, []byte) ([]byte, error) {
	return nil, fmt.Errorf("%s is not opened here", w.annotation)
}

// A sealer wraps the key of each layer to recipients, in this process.
type sealer struct {
	wrapper
	recipients []layerkey.Recipient
}

func (s sealer) WrapKeys(_ *encconfig.EncryptConfig, options []byte) ([]byte, error) {
	return layerkey.Seal(options, s.recipients)
}

// sealWith has ocicrypt wrap keys to recipients.
func sealWith(recipients []layerkey.Recipient) *encconfig.EncryptConfig {
	ocicrypt.RegisterKeyWrapper(strings.TrimPrefix(layerkey.Annotation, layerkey.AnnotationPrefix),
		sealer{wrapper{layerkey.Annotation}, recipients})
	none := map[string][][]byte{}
	return &encconfig.EncryptConfig{Parameters: none, DecryptConfig: encconfig.DecryptConfig{Parameters: none}}
}

// A ring holds the keys of layers that were opened before the copy.
type ring map[string][]byte // packet -> options

type opened struct {
	wrapper
	ring ring
}

func (o opened) UnwrapKey(_ *encconfig.DecryptConfig, packet []byte) ([]byte, error) {
	if options, ok := o.ring[string(packet)]; ok {
		return options, nil
	}
	return nil, errors.New("the image changed while it was read")
}

// openRing opens the keys of all encrypted layers, with one login, and has ocicrypt find them.
func openRing(ctx context.Context, ks *keystore.Keystore, ref Reference, images []Image, references []string) (*encconfig.DecryptConfig,
	error) {
	keys := layerkey.OpenKeys(ks, references, config.Flags)
	defer keys.Close()
	ring := ring{}
	for _, image := range images {
		for _, l := range image.Layers {
			if !l.Encrypted {
				continue
			}
			options, err := unlock(ctx, keys, l)
			if err != nil {
				return nil, about(err, "%s of %s", l, image.name(ref))
			}
			for name, value := range l.annotations {
				if !strings.HasPrefix(name, layerkey.AnnotationPrefix) {
					continue
				}
				// Whatever else the process has for this annotation, such as the command of a key provider, is not asked.
				ocicrypt.RegisterKeyWrapper("hsm-image "+name, opened{wrapper{name}, ring})
				for text := range strings.SplitSeq(value, ",") {
					if packet, err := base64.StdEncoding.DecodeString(text); err == nil {
						ring[string(packet)] = options
					}
				}
			}
		}
	}
	return &encconfig.DecryptConfig{Parameters: map[string][][]byte{}}, nil
}

// unlock returns the options of one layer.
func unlock(ctx context.Context, keys *layerkey.Keys, l Layer) ([]byte, error) {
	options, err := keys.Open(ctx, l.annotations)
	if err != nil {
		return nil, err
	}
	return options, checkOptions(l.annotations, options)
}

// checkOptions refuses what ocicrypt would stumble over, or take. Whoever can write to a registry can change the public
// options of a layer, and a nonce there would win over the one that is wrapped with the key: the layer would come out
// as noise, and no check would notice, for the HMAC is over what is encrypted alone.
func checkOptions(annotations map[string]string, options []byte) error {
	const hint = "get the image's manifest again from where it was published"
	public, err := cipherOf(annotations)
	if err != nil {
		return failure.New(failure.Invalid, "the annotation %s is damaged: %w", pubopts, err).WithHint(hint)
	}
	var private blockcipher.PrivateLayerBlockCipherOptions
	// The text of an error of JSON could show the key.
	if json.Unmarshal(options, &private) != nil || len(private.SymmetricKey) != 32 ||
		len(private.CipherOptions["nonce"]) != aes.BlockSize {
		return failure.New(failure.Invalid, "what is wrapped for the recipients is not a key of ocicrypt's").
			WithHint("ask who encrypted the image with what")
	}
	if _, there := public.CipherOptions["nonce"]; there {
		return failure.New(failure.Denied, "the annotation %s was changed: it gives a nonce of its own", pubopts).
			WithHint(hint)
	}
	return nil
}

func cipherOf(annotations map[string]string) (public blockcipher.PublicLayerBlockCipherOptions, err error) {
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

// about says of what a failure is, before its own words.
func about(err error, format string, args ...any) error {
	f := *failure.From(err)
	f.What = fmt.Sprintf(format, args...) + ": " + f.What
	return &f
}
