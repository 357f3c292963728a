package image

import (
	"io"
	"os"
	"strings"

	"github.com/containerd/imgcrypt/v2"
	"github.com/containers/ocicrypt/spec"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"
)

// payloadDescriptor is where containerd hands over what it says of a layer.
const payloadDescriptor = 3

// ContainerdPayload is what containerd says of the layer; it is empty if it says nothing.
func ContainerdPayload() io.Reader {
	// With nothing handed over, the descriptor is one of this program's own: only a pipe's end for reading can be meant.
	var status unix.Stat_t
	flags, err := unix.FcntlInt(payloadDescriptor, unix.F_GETFL, 0)
	if err != nil || unix.Fstat(payloadDescriptor, &status) != nil || status.Mode&unix.S_IFMT != unix.S_IFIFO ||
		flags&unix.O_ACCMODE != unix.O_RDONLY {
		return strings.NewReader("")
	}
	unix.CloseOnExec(payloadDescriptor) // the command of a pin-source has no business with it
	return os.NewFile(payloadDescriptor, "payload")
}

// The part of containerd's configuration that matters here.
type (
	containerdConfig struct {
		Version    int                        `toml:"version"`
		Processors map[string]streamProcessor `toml:"stream_processors"`
	}
	streamProcessor struct {
		Accepts []string `toml:"accepts,multiline"`
		Returns string   `toml:"returns"`
		Path    string   `toml:"path"`
		Args    []string `toml:"args"`
		Env     []string `toml:"env"`
	}
)

// ContainerdConfig returns a drop-in for containerd's configuration (TOML) that has encrypted layers opened by the
// program at path, with the settings of a config file and the named keys. root is containerd's root folder; user, if it
// is not empty, is whom the program goes on as once the layer's key is open.
func ContainerdConfig(path, settings, root, user string, references []string) ([]byte, error) {
	args := []string{"containerd-decoder", "--root", root}
	if user != "" {
		args = append(args, "--user", user)
	}
	for _, reference := range references {
		args = append(args, "--key", reference)
	}
	processor := func(accepts ...string) streamProcessor {
		return streamProcessor{accepts, ocispec.MediaTypeImageLayer, path, args, []string{"NOTATION_HSM_CONFIG=" + settings}}
	}
	return toml.Marshal(containerdConfig{
		Version: 2, // which configurations of this version and all newer ones can import
		// containerd gives its payload to these two names alone, and both have a default that would compete with another
		// name.
		Processors: map[string]streamProcessor{
			imgcrypt.PayloadToolIDs[0]: processor(spec.MediaTypeLayerEnc, spec.MediaTypeLayerNonDistributableEnc),
			imgcrypt.PayloadToolIDs[1]: processor(spec.MediaTypeLayerGzipEnc, spec.MediaTypeLayerZstdEnc,
				spec.MediaTypeLayerNonDistributableGzipEnc, spec.MediaTypeLayerNonDistributableZstdEnc),
		},
	})
}
