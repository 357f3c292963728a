package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/types"

	"github.com/notation-hsm/notation-hsm/internal/deadline"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/layerkey"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// An edit returns the new value of our annotation of an encrypted layer.
type edit func(Layer) (string, error)

// changeManifests reads the manifests that a reference names, and writes those that rewrite makes of them.
func changeManifests(ctx context.Context, ref Reference, registry Registry, rewrite rewrite) (*RecipientChange, error) {
	var changed *RecipientChange
	err := withStallTimer(ctx, "changing the recipients of "+ref.String(),
		func(ctx context.Context, timer *stallTimer) (err error) {
			changed, err = changeTree(ctx, ref, registry, rewrite, timer)
			return err
		})
	return changed, err
}

// changeTree is changeManifests within a stall timer.
func changeTree(ctx context.Context, ref Reference, registry Registry, rewrite rewrite,
	timer *stallTimer) (*RecipientChange, error) {
	path, name, local := ref.local()
	if local && ref.transport() != layout.Transport.Name() || strings.HasPrefix(name, "@") {
		return nil, failure.New(failure.Unsupported,
			"cannot change the recipients of %s: it is neither in a registry nor in oci:DIR:TAG", ref).
			WithHint("copy it to oci:DIR:TAG, change it there, and copy it back")
	}
	sys := registry.context()
	source, err := openSource(ctx, ref, sys)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	t, err := read(ctx, ref, sys, source, timer)
	if err != nil {
		return nil, err
	}
	if _, encrypted := Recipients(t.images); encrypted == 0 {
		return nil, failure.New(failure.Invalid, "%s has no encrypted layer", ref).
			WithHint("encrypt it with 'hsm-image encrypt'")
	}
	var changed *RecipientChange
	var manifests [][]byte
	timer.suspend()
	// A module that hangs is abandoned here.
	err = deadline.Run(ctx, func(ctx context.Context) (err error) {
		changed, manifests, err = rewrite(ctx, t)
		return err
	})
	if err != nil || changed.Layers == 0 {
		return changed, err
	}
	timer.progress()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if local {
		err = writeLayout(ref, path, name, manifests)
	} else {
		err = pushManifests(ctx, ref, sys, t.digest, manifests)
		changed.Name = ref.DockerReference().Name() + "@" + changed.Digest.String()
	}
	return changed, err
}

// A rewrite returns new manifests: those of the images that change, and last that of the index.
type rewrite func(context.Context, *tree) (*RecipientChange, [][]byte, error)

// edit is a rewrite that changes our annotation of each encrypted layer.
func (t *tree) edit(edit edit) (*RecipientChange, [][]byte, error) {
	changed := &RecipientChange{Digest: t.digest}
	var manifests [][]byte
	renamed := map[digest.Digest][]byte{}
	for _, image := range t.images {
		data, layers, err := image.edit(t.reference, edit)
		if err != nil {
			return nil, nil, err
		}
		if layers > 0 {
			manifests, renamed[image.Digest] = append(manifests, data), data
			changed.Layers += layers
		}
	}
	if changed.Layers == 0 {
		return changed, nil, nil
	}
	if t.index {
		index, err := rewriteIndex(t.manifest, renamed)
		if err != nil {
			return nil, nil, malformed(t.reference, err)
		}
		manifests = append(manifests, index)
	}
	changed.Digest = digest.FromBytes(manifests[len(manifests)-1])
	return changed, manifests, nil
}

// edit returns a new manifest, and how many of its layers changed. All else in the manifest stays as it is.
func (i Image) edit(ref Reference, edit edit) (data []byte, changed int, err error) {
	object := map[string]json.RawMessage{}
	var layers []map[string]json.RawMessage
	if !i.encrypted() {
		return nil, 0, nil
	}
	if i.mimeType != ocispec.MediaTypeImageManifest {
		return nil, 0, malformed(ref, fmt.Errorf("a manifest of the type %s has no place for wrapped keys", i.mimeType))
	}
	if err := json.Unmarshal(i.manifest, &object); err != nil {
		return nil, 0, malformed(ref, err)
	}
	if err := json.Unmarshal(object["layers"], &layers); err != nil {
		return nil, 0, malformed(ref, err)
	}
	if len(layers) != len(i.Layers) {
		return nil, 0, malformed(ref, errors.New("it lists its layers twice"))
	}
	for _, l := range i.Layers {
		if !l.Encrypted {
			continue
		}
		value, err := edit(l)
		if err != nil {
			return nil, 0, prefixed(err, "%s of %s", l, i.name(ref))
		}
		if value == l.annotations[layerkey.Annotation] {
			continue
		}
		annotations := map[string]string{}
		for name, value := range l.annotations {
			annotations[name] = value
		}
		annotations[layerkey.Annotation] = value
		if value == "" {
			delete(annotations, layerkey.Annotation)
		}
		// An image that cannot be read any more, such as one with too many recipients, is not written.
		if _, err := layerkey.ReadRecipients(annotations); err != nil && !failure.Is(err, failure.Unsupported) {
			return nil, 0, prefixed(err, "%s of %s", l, i.name(ref))
		}
		if layers[l.Index]["annotations"], err = json.Marshal(annotations); err != nil {
			return nil, 0, err
		}
		changed++
	}
	if object["layers"], err = json.Marshal(layers); err != nil {
		return nil, 0, err
	}
	data, err = json.Marshal(object)
	if err == nil && len(data) > manifestLimit {
		err = failure.New(failure.Invalid, "the manifest of %s would be larger than %d MiB", i.name(ref),
			manifestLimit>>20).WithHint("remove recipients that are not needed")
	}
	return data, changed, err
}

// rewriteIndex returns an index that lists new manifests in the place of old ones.
func rewriteIndex(index []byte, renamed map[digest.Digest][]byte) ([]byte, error) {
	object := map[string]json.RawMessage{}
	var entries []map[string]json.RawMessage
	if err := json.Unmarshal(index, &object); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(object["manifests"], &entries); err != nil {
		return nil, err
	}
	for _, entry := range entries {
		var old digest.Digest
		if err := json.Unmarshal(entry["digest"], &old); err != nil {
			return nil, err
		}
		data, ok := renamed[old]
		if !ok {
			continue
		}
		entry["digest"] = json.RawMessage(fmt.Sprintf("%q", digest.FromBytes(data)))
		entry["size"] = json.RawMessage(fmt.Sprint(len(data)))
	}
	var err error
	if object["manifests"], err = json.Marshal(entries); err != nil {
		return nil, err
	}
	return json.Marshal(object)
}

// pushManifests writes manifests to a registry, the one that the reference names last. It fails with Conflict when the
// tag names another image than the one that was read.
func pushManifests(ctx context.Context, ref Reference, sys *types.SystemContext, before digest.Digest,
	manifests [][]byte) error {
	failed := func(err error) error {
		return failure.New(failure.Unavailable, "cannot write %s: %w", ref, err).
			WithHint("check the network, and that this user has write access to the repository")
	}
	destination, err := ref.NewImageDestination(ctx, sys)
	if err != nil {
		return failed(err)
	}
	defer destination.Close()
	_, byDigest := ref.DockerReference().(reference.Digested)
	for i, data := range manifests {
		d := digest.FromBytes(data)
		target := &d
		if i == len(manifests)-1 && !byDigest {
			now, err := docker.GetDigest(ctx, sys, ref.ImageReference)
			if err != nil {
				return failed(err)
			}
			if now != before {
				return failure.New(failure.Conflict, "cannot write %s: it has become another image, %s", ref, now).
					WithHint("run it again")
			}
			target = nil
		}
		if err := destination.PutManifest(ctx, data, target); err != nil {
			return failed(err)
		}
	}
	return nil
}

// writeLayout writes manifests into an OCI layout, and then its index.
func writeLayout(ref Reference, path, name string, manifests [][]byte) error {
	failed := func(err error) error {
		return failure.New(failure.Unavailable, "cannot write %s: %w", ref, err).
			WithHint("check the permissions of the folder, and that the disk is not full")
	}
	entry, err := layout.LoadManifestDescriptor(ref.ImageReference)
	if err != nil {
		return failed(err)
	}
	old := entry.Digest
	for _, data := range manifests {
		entry.Digest, entry.Size = digest.FromBytes(data), int64(len(data))
		blob := filepath.Join(path, ocispec.ImageBlobsDir, entry.Digest.Algorithm().String(), entry.Digest.Encoded())
		if err := state.Write(blob, data, 0o644); err != nil {
			return err
		}
	}
	if err := setEntry(path, name, old, entry); err != nil {
		return failed(err)
	}
	return nil
}
