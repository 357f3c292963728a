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

// payloadDescriptor is the descriptor from which containerd's payload is read.
const payloadDescriptor = 3

// ContainerdPayload returns containerd's payload for the layer, or an empty reader if there is none.
func ContainerdPayload() io.Reader {
	// Without a payload, the descriptor may be one of this program's own: a payload is the reading end of a pipe.
	var status unix.Stat_t
	flags, err := unix.FcntlInt(payloadDescriptor, unix.F_GETFL, 0)
	if err != nil || unix.Fstat(payloadDescriptor, &status) != nil || status.Mode&unix.S_IFMT != unix.S_IFIFO ||
		flags&unix.O_ACCMODE != unix.O_RDONLY {
		return strings.NewReader("")
	}
	unix.CloseOnExec(payloadDescriptor) // the command of a pin-source must not inherit it
	return os.NewFile(payloadDescriptor, "payload")
}

// The part of containerd's configuration that ContainerdConfig writes.
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

// ContainerdConfig returns a drop-in for containerd's configuration (TOML), with which the program at path opens
// encrypted layers, with the settings of a config file and the keys that references name. root is containerd's root
// folder; user, if not empty, is the user that the program becomes when it has unwrapped a layer's key.
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
		Version: 2, // configurations of this version and of newer ones can import it
		// containerd sends payloads to these two names alone, and has a default for both.
		Processors: map[string]streamProcessor{
			imgcrypt.PayloadToolIDs[0]: processor(spec.MediaTypeLayerEnc, spec.MediaTypeLayerNonDistributableEnc),
			imgcrypt.PayloadToolIDs[1]: processor(spec.MediaTypeLayerGzipEnc, spec.MediaTypeLayerZstdEnc,
				spec.MediaTypeLayerNonDistributableGzipEnc, spec.MediaTypeLayerNonDistributableZstdEnc),
		},
	})
}
