package image

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/layerkey"
)

// A RecipientLayers is one who can open layers, and how many of those that are encrypted.
type RecipientLayers struct {
	layerkey.RecipientInfo
	Layers int `json:"layers"`
}

// Recipients lists who can open encrypted layers of images, and how many layers are encrypted.
func Recipients(images []Image) (found []RecipientLayers, encrypted int) {
	known := map[layerkey.RecipientInfo]int{} // where in found
	for _, image := range images {
		for _, l := range image.Layers {
			if l.Encrypted {
				encrypted++
			}
			for _, h := range l.Recipients {
				at, ok := known[h]
				if !ok {
					at = len(found)
					known[h], found = at, append(found, RecipientLayers{RecipientInfo: h})
				}
				found[at].Layers++
			}
		}
	}
	return found, encrypted
}

// A Changed is what changing the recipients of an image has made.
type Changed struct {
	Name   string        // the image by its new digest, HOST/NAME@DIGEST, if it is in a registry
	Digest digest.Digest // of the manifest, or index, now
	Layers int           // how many layers have other recipients; with 0, nothing was written

	Warnings []string // about new recipients, as layerkey.Recipient has them
}

// AddRecipients wraps the key of each encrypted layer for more recipients, as layerkey.ParseRecipients reads them. One
// for whom a layer's key is wrapped already, with the same algorithm, is left as is. The key of the others is opened
// with the keys that references name, as Decrypt does.
//
// Like RemoveRecipients, it changes manifests in a registry or in an OCI layout, in their place: layers are neither
// read nor moved.
func AddRecipients(ctx context.Context, ks *keystore.Keystore, ref Reference, registry Registry, recipients, references []string) (*Changed,
	error) {
	added, err := layerkey.ParseRecipients(ctx, ks, recipients, config.Flags)
	if err != nil {
		return nil, err
	}
	trial, err := layerkey.Seal([]byte("{}"), added) // says what the added ones are going to be
	if err != nil {
		return nil, err
	}
	wanted, err := layerkey.ReadRecipients(map[string]string{layerkey.Annotation: base64.StdEncoding.EncodeToString(trial)})
	if err != nil {
		return nil, err
	}
	changed, err := change(ctx, ref, registry, func(ctx context.Context, t *tree) (*Changed, [][]byte, error) {
		keys := layerkey.OpenKeys(ks, references, config.Flags)
		defer keys.Close()
		return t.edit(func(l Layer) (string, error) {
			before := l.annotations[layerkey.Annotation]
			var missing []layerkey.Recipient
			for i, r := range added {
				if !slices.Contains(l.Recipients, wanted[i]) {
					missing = append(missing, r)
				}
			}
			if len(missing) == 0 {
				return before, nil
			}
			options, err := unlock(ctx, keys, l)
			if err != nil {
				return "", err
			}
			defer clear(options)
			packet, err := layerkey.Seal(options, missing)
			if err != nil {
				return "", err
			}
			after := base64.StdEncoding.EncodeToString(packet)
			if before != "" {
				after = before + "," + after
			}
			return after, nil
		})
	})
	if err == nil {
		changed.Warnings = warnings(added)
	}
	return changed, err
}

// warnings returns what nobody could be asked about recipients.
func warnings(recipients []layerkey.Recipient) (texts []string) {
	for _, r := range recipients {
		if r.Warning != "" {
			texts = append(texts, r.Warning)
		}
	}
	return texts
}

// RemoveRecipients takes recipients, by kid or as layerkey.IdentifyRecipients reads them, from the wrapped keys of all
// layers. It needs no private key. Whoever was one of them and kept the manifest, or the layer's key, still opens the
// layers: only encrypting the image anew takes that away. It refuses to leave a layer that nobody can open.
func RemoveRecipients(ctx context.Context, ks *keystore.Keystore, ref Reference, registry Registry, names []string) (*Changed, error) {
	return change(ctx, ref, registry, func(ctx context.Context, t *tree) (*Changed, [][]byte, error) {
		found, _ := Recipients(t.images)
		gone, err := keyIDs(ctx, ks, ref, names, found)
		if err != nil {
			return nil, nil, err
		}
		return t.edit(func(l Layer) (string, error) {
			after, err := without(l.annotations[layerkey.Annotation], gone)
			if err == nil && after == "" && len(others(l.annotations)) == 0 {
				err = failure.New(failure.Denied, "nobody could open it any more").WithHint("add another recipient first")
			}
			return after, err
		})
	})
}

// keyIDs returns the kids of recipients that are named by kid or otherwise. Each has to be one who holds something.
func keyIDs(ctx context.Context, ks *keystore.Keystore, ref Reference, names []string, found []RecipientLayers) ([]string, error) {
	holds := func(kid string) bool {
		return slices.ContainsFunc(found, func(h RecipientLayers) bool { return h.KeyID == kid && h.annotation() == layerkey.Annotation })
	}
	var kids []string
	for _, name := range names {
		kid := name
		if thumbprint, err := base64.RawURLEncoding.DecodeString(name); !holds(kid) &&
			(err != nil || len(thumbprint) != sha256.Size) {
			parsed, err := layerkey.IdentifyRecipients(ctx, ks, []string{name}, config.Flags)
			if err != nil {
				return nil, err
			}
			kid = parsed[0].KeyID()
		}
		if !holds(kid) {
			return nil, failure.New(failure.Invalid, "%s is no recipient of %s (it has no kid %s)", name, ref, kid).
				WithHint("see 'hsm-image recipients list " + ref.String() +
					"'; those of other schemes than provider.hsm can't be removed one by one")
		}
		kids = append(kids, kid)
	}
	return kids, nil
}

func (h RecipientLayers) annotation() string { return layerkey.AnnotationPrefix + h.Scheme }

// others returns the annotations that hold keys wrapped by others.
func others(annotations map[string]string) (names []string) {
	for name, value := range annotations {
		if strings.HasPrefix(name, layerkey.AnnotationPrefix) && name != layerkey.Annotation && value != "" {
			names = append(names, name)
		}
	}
	return names
}

// without takes recipients from the packets of our annotation. The recipients of a JWE are not authenticated with its
// content: each has its own copy of the content's key (RFC 7516 section 7.2.1), so one can go and the rest stays what
// it is.
func without(annotation string, gone []string) (string, error) {
	var kept []string
	for text := range strings.SplitSeq(annotation, ",") {
		if text == "" {
			continue
		}
		holders, err := layerkey.ReadRecipients(map[string]string{layerkey.Annotation: text})
		if err != nil {
			return "", err
		}
		stays := func(h layerkey.RecipientInfo) bool { return !slices.Contains(gone, h.KeyID) }
		switch {
		case !slices.ContainsFunc(holders, stays):
			continue
		case slices.ContainsFunc(holders, func(h layerkey.RecipientInfo) bool { return !stays(h) }):
			if text, err = withoutEntries(text, func(i int) bool { return i < len(holders) && stays(holders[i]) }); err != nil {
				return "", err
			}
		}
		kept = append(kept, text)
	}
	return strings.Join(kept, ","), nil
}

func withoutEntries(text string, stays func(int) bool) (string, error) {
	packet, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return "", err
	}
	jwe := map[string]json.RawMessage{}
	var entries, kept []json.RawMessage
	if err := json.Unmarshal(packet, &jwe); err != nil {
		return "", err
	}
	if err := json.Unmarshal(jwe["recipients"], &entries); err != nil {
		return "", err
	}
	for i, entry := range entries {
		if stays(i) {
			kept = append(kept, entry)
		}
	}
	if jwe["recipients"], err = json.Marshal(kept); err != nil {
		return "", err
	}
	if packet, err = json.Marshal(jwe); err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(packet), nil
}

// Names returns what recipients are called, as they were given, by kid.
func Names(ctx context.Context, ks *keystore.Keystore, recipients []string) (map[string]string, error) {
	names := map[string]string{}
	if len(recipients) == 0 {
		return names, nil
	}
	parsed, err := layerkey.IdentifyRecipients(ctx, ks, recipients, config.Flags)
	for _, r := range parsed {
		names[r.KeyID()] = r.Name
	}
	return names, err
}
