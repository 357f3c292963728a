package image

import (
	"context"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/deadline"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/harden"
	"github.com/notation-hsm/notation-hsm/internal/sandbox"
)

// DecoderUser is the user that the decoder becomes by default, if it exists.
const DecoderUser = "hsm-image"

// The limits of a decoder, for a large layer and with the module, which counts while it is loaded.
const (
	decoderMemory = 1 << 30 // bytes of data, beyond what the process has at its start
	decoderCPU    = 3600    // seconds of processor time: hundreds of gigabytes
	confineLimit  = 10 * time.Second
)

// Confined returns a decoder that gives up rights of its process in two steps. Before anything is read, it sets limits
// and excludes new privileges. When the module has unwrapped the layer's key and is closed, the process becomes a user
// without access to any file. The module itself keeps its files, devices and daemons, which differ from vendor to
// vendor. An empty name keeps the user. It fails with NotFound for a user that does not exist.
func (d Decoder) Confined(user string) (Decoder, error) {
	d.confined = true
	if user == "" {
		return d, nil
	}
	found, err := sandbox.LookUp(user)
	if err != nil {
		return d, failure.New(failure.NotFound, "cannot find the decoder's user: %w", err).
			WithHint("make the user, or print containerd's configuration again with --user root")
	}
	d.user = &found
	return d, nil
}

// limit is the first step of a confined decoder.
func (d Decoder) limit() error {
	if !d.confined {
		return nil
	}
	if err := (sandbox.Limits{Memory: decoderMemory, CPU: decoderCPU}).Set(); err != nil {
		return confinementFailed(err)
	}
	if err := harden.Privileges(); err != nil {
		return confinementFailed(err)
	}
	return nil
}

// giveUpFiles is the second step of a confined decoder. It has a deadline, since it waits for all threads, those that a
// module left behind among them.
func (d Decoder) giveUpFiles(ctx context.Context) error {
	if !d.confined {
		return nil
	}
	late := func() error {
		return failure.New(failure.Timeout, "cannot confine the decoder within %s", confineLimit).
			WithHint("report this with the name of the module")
	}
	return deadline.Step(ctx, confineLimit, late, func() error {
		if err := (sandbox.Files{}).Restrict(); err != nil {
			return confinementFailed(err)
		}
		if d.user != nil {
			if err := d.user.Become(); err != nil {
				return confinementFailed(err)
			}
		}
		return nil
	})
}

// confinementFailed is the failure of a step.
func confinementFailed(err error) error {
	return failure.New(failure.Internal, "cannot confine the decoder: %w", err).WithHint("see containerd's log")
}
