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
	Layers int `json:"layers"` // how many
}

// Recipients returns the recipients of the encrypted layers of images, and how many layers are encrypted.
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

// A RecipientChange describes a change of an image's recipients.
type RecipientChange struct {
	Name     string        // HOST/NAME@DIGEST of an image in a registry, with its new digest, else empty
	Digest   digest.Digest // of the new manifest or index
	Layers   int           // how many layers have other recipients now; with 0, nothing was written
	Warnings []string      // about new recipients: layerkey.Recipient.Warning
}

// AddRecipients wraps the key of each encrypted layer for more recipients, which layerkey.ParseRecipients parses. A
// layer's key that is wrapped for a recipient already, with the same algorithm, stays as it is. The keys of the others
// are unwrapped with the keys that references name, as in Decrypt.
//
// Like RemoveRecipients, it changes the manifests of an image in a registry or in an OCI layout, in place; it neither
// reads nor moves layers.
func AddRecipients(ctx context.Context, ks *keystore.Keystore, ref Reference, registry Registry, recipients,
	references []string) (*RecipientChange, error) {
	added, err := layerkey.ParseRecipients(ctx, ks, recipients, config.Flags)
	if err != nil {
		return nil, err
	}
	trial, err := layerkey.Seal([]byte("{}"), added) // shows how annotations are going to describe them
	if err != nil {
		return nil, err
	}
	wanted, err := layerkey.ReadRecipients(
		map[string]string{layerkey.Annotation: base64.StdEncoding.EncodeToString(trial)})
	if err != nil {
		return nil, err
	}
	add := func(ctx context.Context, t *tree) (*RecipientChange, [][]byte, error) {
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
			options, err := unwrapKey(ctx, keys, l)
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
	}
	changed, err := changeManifests(ctx, ref, registry, add)
	if err == nil {
		changed.Warnings = warnings(added)
	}
	return changed, err
}

// warnings returns the warnings about recipients.
func warnings(recipients []layerkey.Recipient) (texts []string) {
	for _, r := range recipients {
		if r.Warning != "" {
			texts = append(texts, r.Warning)
		}
	}
	return texts
}

// RemoveRecipients removes recipients, by kid or as layerkey.IdentifyRecipients parses them, from the wrapped keys of
// all layers. It needs no private key. A removed recipient who kept the old manifest, or a layer's key, still opens the
// layers: to prevent that, encrypt the image anew. It fails with Denied when a layer would have no recipient left.
func RemoveRecipients(ctx context.Context, ks *keystore.Keystore, ref Reference, registry Registry,
	names []string) (*RecipientChange, error) {
	return changeManifests(ctx, ref, registry, func(ctx context.Context, t *tree) (*RecipientChange, [][]byte, error) {
		found, _ := Recipients(t.images)
		gone, err := keyIDs(ctx, ks, ref, names, found)
		if err != nil {
			return nil, nil, err
		}
		return t.edit(func(l Layer) (string, error) {
			after, err := removeRecipients(l.annotations[layerkey.Annotation], gone)
			if err == nil && after == "" && len(otherSchemes(l.annotations)) == 0 {
				err = failure.New(failure.Denied, "it would have no recipient left").WithHint("add another recipient first")
			}
			return after, err
		})
	})
}

// keyIDs returns the kids of recipients that are named by kid or otherwise. It fails with NotFound for a name that is
// no recipient's.
func keyIDs(ctx context.Context, ks *keystore.Keystore, ref Reference, names []string,
	found []RecipientLayers) ([]string, error) {
	known := func(kid string) bool {
		return slices.ContainsFunc(found, func(r RecipientLayers) bool {
			return r.KeyID == kid && r.annotation() == layerkey.Annotation
		})
	}
	var kids []string
	for _, name := range names {
		kid := name
		if thumbprint, err := base64.RawURLEncoding.DecodeString(name); !known(kid) &&
			(err != nil || len(thumbprint) != sha256.Size) {
			parsed, err := layerkey.IdentifyRecipients(ctx, ks, []string{name}, config.Flags)
			if err != nil {
				return nil, err
			}
			kid = parsed[0].KeyID()
		}
		if !known(kid) {
			return nil, failure.New(failure.NotFound, "%s is no recipient of %s (it has no kid %s)", name, ref, kid).
				WithHint("list the recipients with 'hsm-image recipients list " + ref.String() +
					"'; only those of the scheme provider.hsm can be removed")
		}
		kids = append(kids, kid)
	}
	return kids, nil
}

// annotation returns the name of the annotation that lists the recipient.
func (r RecipientLayers) annotation() string { return layerkey.AnnotationPrefix + r.Scheme }

// otherSchemes returns the names of annotations with keys that are wrapped in other schemes than provider.hsm.
func otherSchemes(annotations map[string]string) (names []string) {
	for name, value := range annotations {
		if strings.HasPrefix(name, layerkey.AnnotationPrefix) && name != layerkey.Annotation && value != "" {
			names = append(names, name)
		}
	}
	return names
}

// removeRecipients removes recipients from the packets of our annotation. The recipients of a JWE are not authenticated
// with its content, and each has its own copy of the content's key (RFC 7516 section 7.2.1), so the rest of the JWE
// stays valid.
func removeRecipients(annotation string, gone []string) (string, error) {
	var kept []string
	for text := range strings.SplitSeq(annotation, ",") {
		if text == "" {
			continue
		}
		recipients, err := layerkey.ReadRecipients(map[string]string{layerkey.Annotation: text})
		if err != nil {
			return "", err
		}
		stays := func(r layerkey.RecipientInfo) bool { return !slices.Contains(gone, r.KeyID) }
		switch {
		case !slices.ContainsFunc(recipients, stays):
			continue
		case slices.ContainsFunc(recipients, func(r layerkey.RecipientInfo) bool { return !stays(r) }):
			text, err = removeEntries(text, func(i int) bool { return i < len(recipients) && stays(recipients[i]) })
			if err != nil {
				return "", err
			}
		}
		kept = append(kept, text)
	}
	return strings.Join(kept, ","), nil
}

// removeEntries removes recipients from a JWE in base64, by their index.
func removeEntries(text string, stays func(int) bool) (string, error) {
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

// RecipientNames returns the names of recipients, as the user wrote them, by kid.
func RecipientNames(ctx context.Context, ks *keystore.Keystore, recipients []string) (map[string]string, error) {
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
