// Package dockercli runs Docker's command line with images that were verified. It is what docker-hsm, a plugin of that
// command line, is made of: it finds the image among docker's arguments, has it verified, and runs docker with the
// image's digest in its place, as the plugin's user would have.
package dockercli

import (
	"context"
	"os"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// originalCommand is the variable in which docker tells a plugin how docker itself was called.
const originalCommand = "DOCKER_CLI_PLUGIN_ORIGINAL_CLI_COMMAND"

// Docker is Docker's command line, as it was called.
type Docker struct {
	program string
	options []string // those before the command, such as --context
}

// Split returns docker as it was called, and the arguments from the plugin's name on. args are those of the plugin's
// process, which docker passes on with its own options before them. help is true if these options ask for help.
func Split(args []string) (docker Docker, command []string, help bool, err error) {
	docker.program = os.Getenv(originalCommand)
	if docker.program == "" {
		docker.program = "docker"
	}
	docker.options, command, _, err = globalTable.read(args)
	return docker, command, slices.Contains(docker.options, helpOption), err
}

// Verify verifies an image that is named by a tag or a digest, and returns it as REPOSITORY@DIGEST. It fails for an
// image that is refused.
type Verify func(ctx context.Context, image string) (string, error)

// A Call is docker's command with its arguments around the image.
type Call struct {
	Help   bool // the options ask for help; there may be no image
	Image  string
	before []string // command and options
	after  []string // what the container runs
}

// ReadRun reads the arguments of 'docker run'.
func ReadRun(args []string) (Call, error) {
	options, rest, _, err := runTable.read(args)
	switch {
	case err != nil:
		return Call{}, err
	case slices.Contains(options, helpOption):
		return Call{Help: true}, nil
	case slices.ContainsFunc(options, mountsImage):
		return Call{}, failure.New(failure.Unsupported, "cannot verify the image of a mount").
			WithHint("leave out mounts of the type image")
	case len(rest) == 0:
		return Call{}, noImage(runTable)
	}
	return Call{Image: rest[0], before: append([]string{"run"}, options...), after: rest[1:]}, nil
}

// mountsImage reports whether an option mounts an image into the container, which docker would pull by its tag.
func mountsImage(option string) bool {
	value, mount := strings.CutPrefix(option, "--mount=")
	return mount && strings.Contains(strings.ToLower(value), "type=image")
}

// ReadPull reads the arguments of 'docker pull', whose options may stand after the image.
func ReadPull(args []string) (Call, error) {
	call := Call{before: []string{"pull"}}
	var images []string
	for len(args) > 0 {
		options, rest, ended, err := pullTable.read(args)
		if err != nil {
			return Call{}, err
		}
		call.before = append(call.before, options...)
		args = nil
		if len(rest) > 0 {
			images = append(images, rest[0])
			args = rest[1:]
		}
		if ended {
			images, args = append(images, args...), nil
		}
	}
	switch {
	case slices.Contains(call.before, helpOption):
		return Call{Help: true}, nil
	case slices.Contains(call.before, "--all-tags=true"):
		return Call{}, failure.New(failure.Unsupported, "cannot pull all tags").WithHint("pull one tag at a time")
	case len(images) == 0:
		return Call{}, noImage(pullTable)
	case len(images) > 1:
		return Call{}, failure.New(failure.Invalid, "%s takes one image, and there are %d", pullTable.command, len(images)).
			WithHint("pull one image at a time")
	}
	call.Image = images[0]
	return call, nil
}

func noImage(t optionTable) error {
	return failure.New(failure.Invalid, "%s needs an image", t.command).
		WithHint("name an image as in registry.example.com/app:1")
}

// Run runs a container. The image is verified, and docker gets its digest: if the engine lacks it, docker pulls it by
// its digest, and an image that the engine has under the tag is not used.
func (d Docker) Run(ctx context.Context, call Call, verify Verify) error {
	pinned, err := verify(ctx, call.Image)
	if err != nil {
		return err
	}
	return d.execute(ctx, slices.Concat(call.before, []string{pinned}, call.after)...)
}

// Pull verifies an image, pulls it by its digest, and tags it as it was named. An image that was named by its digest
// gets no tag.
func (d Docker) Pull(ctx context.Context, call Call, verify Verify) error {
	tagged, err := tagOf(call.Image)
	if err != nil {
		return err
	}
	pinned, err := verify(ctx, call.Image)
	if err != nil {
		return err
	}
	if err := d.execute(ctx, slices.Concat(call.before, []string{pinned})...); err != nil || tagged == "" {
		return err
	}
	return d.execute(ctx, "tag", pinned, tagged)
}

// tagOf returns the full name of an image that is named by a tag, and "" for one that is named by a digest.
func tagOf(image string) (string, error) {
	named, err := reference.ParseDockerRef(image)
	if err != nil {
		return "", failure.New(failure.Invalid, "%q is not an image's name: %w", image, err).
			WithHint("name an image as in registry.example.com/app:1")
	}
	if _, digested := named.(reference.Digested); digested {
		return "", nil
	}
	return named.String(), nil
}
